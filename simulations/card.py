"""The model card of an exported run: what was protected, for whom, at which epsilon, and what was not."""

from pathlib import Path

import jinja2

from cloister.privacy.plan import Plan
from cloister.simulations.auditing.findings import results
from cloister.simulations.guarantees import not_protected, protected
from cloister.simulations.record import RunRecord, write_whole
from cloister.simulations.report import summary
from cloister.simulations.report_words import metric_label, metric_text

FILE_NAME = "README.md"

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    autoescape=False,  # Markdown
)


def write(record: RunRecord, folder: Path, *, loadable: bool) -> Path:
    """Write ``folder/README.md`` about the run of this record and return its path.

    ``loadable``: ``from_pretrained`` can load the folder.
    """
    path = folder / FILE_NAME
    write_whole(path, render(record, loadable=loadable).encode())
    return path


def render(record: RunRecord, *, loadable: bool) -> str:
    """Return the card as Markdown."""
    plan = Plan.of(record.privacy.plan, "the record's plan")
    return _TEMPLATES.get_template("card.md.j2").render(
        record=record,
        title=record.title or record.experiment,
        summary=summary(record),
        loadable=loadable,
        claims=record.privacy.claims,
        audits=results(record.privacy.audits),
        protected=protected(plan),
        not_protected=not_protected(plan),
        results=[(metric_label(name), metric_text(name, value)) for name, value in record.final.items()],
    )
