"""Classify images with each exported file, without fastcifar: use_exports.py FOLDER IMAGES.npy OUT.npz."""

import re
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import torch

sys.modules["fastcifar"] = None  # type: ignore[assignment] # importing it fails from here on


def main() -> None:
    folder, images = Path(sys.argv[1]), np.load(sys.argv[2])
    program = torch.export.load(folder / "model.pt2").module()
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "hub" / "README.md").read_text(), re.S)
    card: dict[str, object] = {}
    exec(code.replace('"model.safetensors"', repr(str(folder / "hub" / "model.safetensors"))), card)
    classify = card["classify"]
    assert callable(classify)
    found = {}
    for size in (1, 2, 257):
        batch = images[:size]
        with torch.inference_mode():
            found[f"torch-{size}"] = program(torch.from_numpy(batch)).numpy()
            found[f"safetensors-{size}"] = classify(torch.from_numpy(batch)).numpy()
        found[f"onnx-{size}"] = session.run(None, {"images": batch})[0]
    np.savez(sys.argv[3], **found)


if __name__ == "__main__":
    main()
