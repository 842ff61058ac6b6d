"""Print, as JSON, the registers and the spilled bytes of the Triton batch norm's kernels, compiled for an H100.

No GPU is needed: Triton contains NVIDIA's assembler and the program that reads its output. Ten seconds on one core.
"""

import itertools
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton  # type: ignore[import-untyped]
from triton.backends.compiler import GPUTarget  # type: ignore[import-untyped]
from triton.compiler import ASTSource  # type: ignore[import-untyped]

from fastcifar.kernels import batch_norm_triton

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
IN_FLOAT32 = ("weight", "bias", "mean", "variance", "partials")
FLAGS: dict[str, list[tuple[str, ...]]] = {  # of each kernel, as ResNet-18 has them
    "forward_statistics": [()],
    "forward_apply": [(), ("HAS_RELU",), ("HAS_RESIDUAL", "HAS_RELU")],
    "backward_statistics": [
        (),
        ("HAS_RELU",),
        ("HAS_MORE", "HAS_RELU"),
        ("HAS_RESULT", "HAS_RELU"),
        ("HAS_MORE", "HAS_RESULT", "HAS_RELU"),
    ],
    "backward_apply": [(), ("IS_MASKED",)],
}


def resources(name: str, flags: tuple[str, ...], element: str) -> dict[str, int]:
    """The registers and spilled bytes of one kernel."""
    kernel = getattr(batch_norm_triton, f"_{name}")
    sizes = batch_norm_triton._BLOCKS | {"BLOCK_PARTIALS": batch_norm_triton._MAX_PARTIALS}
    constants: dict[str, Any] = {}
    signature: dict[str, str] = {}
    attributes = {}
    for position, argument in enumerate(kernel.arg_names):
        if argument.isupper():
            signature[argument] = "constexpr"
            constants[argument] = 1e-5 if argument == "EPS" else sizes.get(argument, argument in flags)
        elif argument.startswith(("in_", "out_")):
            signature[argument] = "*fp32" if argument.split("_", 1)[1].startswith(IN_FLOAT32) else f"*{element}"
            attributes[(position,)] = [["tt.divisibility", 16]]
        else:
            signature[argument] = "i32"
            attributes[(position,)] = [["tt.divisibility", 16]]  # of rows, channels and partials of every layer
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": sizes["num_warps"]})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(CUOBJDUMP), "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"(\w+):(\d+)", usage))
    return {"registers": int(found["REG"]), "spilled": int(found["LOCAL"]), "shared": int(found["SHARED"])}


def main() -> None:
    found = {
        " ".join((element, name, *flags)): resources(name, flags, element)
        for element, name in itertools.product(("bf16", "fp32"), FLAGS)
        for flags in FLAGS[name]
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
