"""LightSecAgg: sums of masked vectors, whose masks are taken off in one step however many clients drop out.

**Honest-but-curious only.** The server and up to T clients together learn nothing but the sums, as long as all of them
follow the protocol. A server or a client that deviates can spoil a sum and can learn more; against those use
:mod:`cloister.privacy.secagg`. Whoever runs this says so where results are reported (:data:`DEVIATION`).

What it is for: a mask belongs to one upload, not to a pair of clients in one round, so uploads of different rounds can
be in one sum. That is what buffered asynchronous aggregation needs.

1. Each user draws a mask, uniform in the field, and codes it into one share per user (:mod:`.code`), sealed to it.
2. It uploads its vector, as integers of the field (:mod:`.numbers`), plus the mask (:mod:`.user`).
3. The server names the uploads of a sum and their public weights (:mod:`.server`). Each user that is still there
   answers with the same weighted sum of the shares it holds; any U answers decode to the sum of the masks.

Source: So et al., "LightSecAgg: a Lightweight and Versatile Design for Secure Aggregation in Federated Learning",
MLSys 2022, arXiv 2109.14236, algorithm 1 and appendix F (asynchronous).
"""

DEVIATION = (
    "secure aggregation is LightSecAgg: server and clients are trusted to follow the protocol (honest-but-curious); "
    "one that deviates can learn more than the sums"
)
"""The sentence for the deviations of a run that uses this protocol."""
