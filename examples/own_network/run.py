"""Counts two folders of images by the small ConvNet, on Ray, and compares them.

python examples/own_network/run.py FOLDER_A FOLDER_B CATALOGUE
"""

import sys

import small_convnet
import torch
from safetensors.torch import save_file

from pipeline import CalibrationRequest, Catalogue, RayEngine, Request, build, calibrate, emd


def main(a: str, b: str, root: str) -> None:
    """Measures ranges, builds both datasets into the catalogue, and prints their distance."""
    if not small_convnet.WEIGHTS.exists():  # your training writes this file
        torch.manual_seed(0)
        save_file(small_convnet.SmallConvNet().state_dict(), small_convnet.WEIGHTS)
    small_convnet.register()
    ranges = f"{root}/small_convnet.ranges.parquet"
    with RayEngine() as engine:
        request = CalibrationRequest([a, b], ranges, extractor="small_convnet")
        calibrate(request, engine=engine)
        for name, folder in (("a", a), ("b", b)):
            built = Request(name, folder, extractor="small_convnet", ranges=ranges)
            build(root, built, engine=engine)
    of_a, of_b = Catalogue(root).load("a"), Catalogue(root).load("b")
    for layer in of_a.layers:
        print(f"{layer}: {float(emd(of_a, of_b, layer=layer)):.2f} bins")


if __name__ == "__main__":
    main(*sys.argv[1:])
