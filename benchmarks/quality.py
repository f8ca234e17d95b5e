"""How near a picture is to a reference, and whether the painted border joins the known part without a seam.

Pictures are uint8 (height, width, 3) RGB; masks are (height, width), True where the picture was painted.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]

PEAK = 255
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of scales, each half as large as the one before
SSIM_WINDOW_PX = 11  # a Gaussian of sigma 1.5, cut off there; a picture must be as large on each side


def psnr_db(reference: Picture, picture: Picture) -> float:
    """Peak signal-to-noise ratio over all pixels and channels, peak 255; infinite for equal pictures.

    Higher is better. Raises ValueError when the shapes differ.
    """
    from skimage.metrics import peak_signal_noise_ratio

    if np.array_equal(reference, picture):
        return math.inf
    return float(peak_signal_noise_ratio(reference, picture, data_range=PEAK))


def border_psnr_db(reference: Picture, picture: Picture, mask: Mask) -> float:
    """`psnr_db` of the pixels where the mask is True; raises ValueError when there are none."""
    _check_mask(mask)
    return psnr_db(reference[mask], picture[mask])


def ssim(reference: Picture, picture: Picture) -> float:
    """Mean structural similarity over the picture and its channels, 1 for equal pictures.

    Higher is better. Raises ValueError when the shapes differ or a side is below SSIM_WINDOW_PX.

    Source: Wang et al. 2004, with its Gaussian window; half a window at the picture's rim is left out.
    """
    return float(_ssim(reference, picture, full=False))


def border_ssim(reference: Picture, picture: Picture, mask: Mask) -> float:
    """Mean of the SSIM map where the mask is True; at the picture's rim the windows see it mirrored.

    Raises ValueError as `ssim` does, and when the mask is empty.
    """
    _check_mask(mask)
    _, similarity = _ssim(reference, picture, full=True)
    return float(similarity[mask].mean())


def ms_ssim(reference: Picture, picture: Picture) -> tuple[float, int] | None:
    """Multi-scale structural similarity, 1 for equal pictures, and the number of scales; higher is better.

    Of the 5 scales as many as the picture's shorter side has room for SSIM's window on, with the weights of those made
    to sum to 1: values of different numbers of scales can't be compared. None where there is no room for two, or
    torchmetrics is not installed. A scale whose structures are opposite counts as 0.

    There is no border-only variant: on the coarser scales the window spans 22 to 176 pixels of the picture, so that
    hardly a place near the border is free of the known part, which is equal in both.

    Source: Wang, Simoncelli and Bovik 2003; computed by torchmetrics, in float64. sewar, which needs no torch, was
    looked at: its filter between two scales also mixes the colours.
    """
    shorter = min(reference.shape[:2])
    scales = 1
    while scales < len(MS_SSIM_WEIGHTS) and shorter // max(2**scales, scales**2) >= SSIM_WINDOW_PX:
        scales += 1  # torchmetrics asks for the square: 99 pixels for 4 scales, where 88 would do
    if scales < 2:
        return None
    try:
        import torch
        from torchmetrics.functional.image import multiscale_structural_similarity_index_measure
    except ImportError:
        return None
    pictures = (torch.from_numpy(one.transpose(2, 0, 1)[None].astype(np.float64)) for one in (picture, reference))
    weights = np.array(MS_SSIM_WEIGHTS[:scales])
    value = multiscale_structural_similarity_index_measure(
        *pictures, data_range=float(PEAK), betas=tuple((weights / weights.sum()).tolist()), normalize="relu"
    )
    return float(value), scales


def seam_ratio(picture: Picture, mask: Mask) -> float:
    """Mean absolute step between neighbouring pixels across the mask's edge, over that of all other neighbours.

    Neighbours share a side; a step is averaged over the channels. 1: the edge is as smooth as the rest of the
    picture; 2: steps are twice as high there. Lower is better down to 1. Infinite when only the edge has steps,
    not-a-number for a picture without any. Raises ValueError when the mask has no edge.
    """
    levels = picture.astype(np.float64)
    steps = [np.abs(np.diff(levels, axis=axis)).mean(axis=2).ravel() for axis in (0, 1)]
    crossings = [np.diff(mask, axis=axis).ravel() for axis in (0, 1)]
    step, crosses = np.concatenate(steps), np.concatenate(crossings)
    if not crosses.any() or crosses.all():
        raise ValueError("the mask has no edge inside the picture, or nothing but edges")
    at_edge, elsewhere = float(step[crosses].mean()), float(step[~crosses].mean())
    if elsewhere == 0:
        return math.inf if at_edge > 0 else math.nan
    return at_edge / elsewhere


def _ssim(reference: Picture, picture: Picture, full: bool) -> Any:
    from skimage.metrics import structural_similarity

    return structural_similarity(
        reference,
        picture,
        data_range=PEAK,
        channel_axis=2,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=full,
    )


def _check_mask(mask: Mask) -> None:
    if not mask.any():
        raise ValueError("the mask is empty: there is no painted pixel to compare")
