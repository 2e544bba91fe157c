"""Similarity of pictures: against scikit-image, closed forms, and the judgement of reconstructions."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from cloister.errors import AuditError
from cloister.privacy.audits.similarity import align, audit_reconstruction, identity_similarity, psnr, ssim


def pictures(count: int = 4, seed: int = 0) -> Tensor:
    """Smooth pictures, 32 by 16 pixels."""
    coarse = torch.rand(count, 3, 8, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=(32, 16), mode="bilinear")


def embed(images: Tensor) -> Tensor:
    return images.flatten(1) - images.flatten(1).mean(1, keepdim=True)


def test_both_measures_are_those_of_scikit_image() -> None:
    originals = pictures()
    noisy = (originals + 0.1 * torch.randn(originals.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    for index, (one, other) in enumerate(zip(originals.numpy(), noisy.numpy(), strict=True)):
        expected = structural_similarity(
            one, other, channel_axis=0, data_range=1.0, gaussian_weights=True, use_sample_covariance=False
        )
        assert ssim(originals, noisy)[index].item() == pytest.approx(expected, abs=1e-5)
        assert psnr(originals, noisy)[index].item() == pytest.approx(
            peak_signal_noise_ratio(one, other, data_range=1.0), abs=1e-4
        )


def test_the_same_picture_and_its_negative() -> None:
    originals = pictures()
    assert ssim(originals, originals).tolist() == pytest.approx([1.0] * 4)
    assert psnr(originals, originals).tolist() == pytest.approx([100.0] * 4)
    assert psnr(torch.zeros(1, 3, 16, 16), torch.full((1, 3, 16, 16), 0.1)).item() == pytest.approx(20.0)
    assert ssim(originals, 1 - originals).max() < 0


def test_reconstructions_are_put_into_the_originals_order() -> None:
    originals = pictures()
    noisy = (originals + 0.05).clamp(0, 1)
    assert align(originals, noisy[[2, 0, 3, 1]]).equal(noisy)


def test_identity_similarity_is_a_cosine_of_embeddings() -> None:
    originals = pictures()
    assert identity_similarity(originals, 0.5 * originals, embed) == pytest.approx([1.0] * 4)
    assert identity_similarity(originals, 1 - originals, embed) == pytest.approx([-1.0] * 4)


def test_good_reconstructions_fail_the_audit_and_grey_ones_pass() -> None:
    originals, labels = pictures(8), np.arange(8)
    gallery = embed(pictures(40, seed=9))
    gallery[:8] = embed(originals)  # what the attacker has of the client's people
    known = {"embed": embed, "gallery": gallery.numpy(), "gallery_labels": np.arange(40), "labels": labels}
    noise = torch.randn(originals.shape, generator=torch.Generator().manual_seed(2))
    good = audit_reconstruction(originals, (originals + 0.02 * noise).clamp(0, 1)[torch.arange(7, -1, -1)], **known)
    assert not good.passed
    assert good.numbers["rank-1"] == 1.0
    assert good.numbers["chance"] == pytest.approx(1 / 40)
    blurred = torch.nn.functional.avg_pool2d(originals, 5, stride=1, padding=2) * 0.3 + 0.2 * noise
    faint = audit_reconstruction(originals, blurred.clamp(0, 1), **known)
    assert faint.numbers["ssim-best"] < 0.5
    assert not faint.passed  # by eye nothing is seen, a recogniser finds them all the same
    grey = audit_reconstruction(originals, (0.5 + 0.1 * noise).clamp(0, 1), **known)
    assert grey.passed
    assert "0 of 8 pictures" in grey.text


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(AuditError, match="stacks of images"):
        psnr(pictures(2), pictures(3))
    with pytest.raises(AuditError, match="at least 11 pixels"):
        ssim(torch.zeros(1, 3, 32, 8), torch.zeros(1, 3, 32, 8))
