"""Code that Inductor generates for an H100, without an H100: how many kernels it launches and how many bytes they move.

Functions are traced on the CPU; each graph is then moved to a simulated cuda:0, and the real Inductor generates its
Triton code for sm_90. This module uses private parts of torch 2.11 and 2.15 and changes them for the whole process:
import it only in a separate process. It does not show cuDNN's algorithms, autotuning, CUDA graphs, or times.
"""

import contextlib
import copy
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"

import torch
import torch._dynamo.device_interface
import torch._inductor.compile_fx as compile_fx
import torch.utils._pytree as pytree
import triton  # type: ignore[import-untyped]
from torch._functorch.aot_autograd import make_boxed_func  # type: ignore[attr-defined]
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime import triton_helpers
from torch._inductor.runtime.triton_heuristics import CachingAutotuner
from torch._subclasses import fake_tensor
from triton.backends.compiler import GPUTarget  # type: ignore[import-untyped]

KNOWN_TORCH = ("2.11", "2.15")
CUDA = torch.device("cuda", 0)
_SIZES = {"bf16": 2, "fp32": 4, "i64": 8, "u8": 1, "i1": 1, "i32": 4, "fp64": 8}
_compile = torch.compile


@dataclass(frozen=True)
class Launch:
    """A kernel in generated code, not from a library.

    Attributes:
        name: Inductor's name, which says what it fuses.
        num_read: bytes of all reads; gathered values count as often as they are written.
        num_written: bytes of all writes.
    """

    name: str
    num_read: int
    num_written: int


@dataclass(frozen=True)
class Graph:
    """The generated code of one graph.

    Attributes:
        function: the name of the function that was compiled.
        part: "forward", "backward" or "inference".
        source: the Python module that Inductor wrote.
        launches: the launches in order.
        externs: how often each library operation is called.
    """

    function: str
    part: str
    source: str
    launches: list[Launch]
    externs: Counter[str]


class _Properties:
    """The device properties that Inductor reads, with an H100's values."""

    name = "NVIDIA H100 80GB HBM3"
    major, minor, multi_processor_count, warp_size = 9, 0, 132, 32
    total_memory, L2_cache_size = 80 << 30, 50 << 20
    regs_per_multiprocessor, max_threads_per_multi_processor, max_threads_per_block = 65536, 2048, 1024
    shared_memory_per_block, shared_memory_per_block_optin, shared_memory_per_multiprocessor = 49152, 232448, 233472
    clock_rate, memory_clock_rate, memory_bus_width = 1980000, 2619000, 5120
    is_integrated = is_multi_gpu_board = 0
    gcnArchName = ""  # noqa: N815


class _Driver:
    """Triton's driver for that device."""

    launcher_cls = None

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return CUDA

    def get_device_interface(self) -> Any:
        return torch.cuda

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: Any = None) -> int:
        return 0

    def get_device_capability(self, device: Any = 0) -> tuple[int, int]:
        return (9, 0)

    def map_python_to_cpp_type(self, name: str) -> str:
        return name

    class utils:  # noqa: N801
        @staticmethod
        def get_device_properties(device: Any) -> dict[str, int]:
            return {"max_shared_mem": 232448, "multiprocessor_count": 132, "max_num_regs": 65536, "warpSize": 32}


class _Stop(BaseException):
    """Ends Inductor once it has generated its code."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source


class _Guard:
    def __init__(self, *_: Any) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def _value(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


@contextlib.contextmanager
def _pretended_h100() -> Iterator[None]:
    cuda = {
        "is_available": True, "device_count": 1, "current_device": 0, "get_device_properties": _Properties,
        "get_device_capability": (9, 0), "get_device_name": _Properties.name, "is_initialized": True,
        "_lazy_init": None, "synchronize": None, "set_device": None, "is_bf16_supported": True, "memory_allocated": 0,
        "is_current_stream_capturing": False, "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": None,
    }  # fmt: skip
    interface = {
        name: staticmethod(_value(cuda[name]))
        for name in (
            "current_device",
            "set_device",
            "device_count",
            "synchronize",
            "get_device_properties",
            "memory_allocated",
            "is_bf16_supported",
        )
    } | {name: staticmethod(_value(0)) for name in ("exchange_device", "maybe_exchange_device", "get_raw_stream")}
    from torch.utils import _triton

    with contextlib.ExitStack() as stack:
        for name, value in cuda.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, _value(value)))
        for name in ("device", "_DeviceGuard"):
            stack.enter_context(mock.patch.object(torch.cuda, name, _Guard))
        for name, value in {"device": _Guard, **interface}.items():
            stack.enter_context(mock.patch.object(torch._dynamo.device_interface.CudaInterface, name, value))
        stack.enter_context(mock.patch.object(torch.accelerator, "current_accelerator", _value(torch.device("cuda"))))
        for function in vars(_triton).values():
            if hasattr(function, "cache_clear"):
                function.cache_clear()
        yield


def _prepare_process() -> None:
    """Choose cuDNN for convolutions, keep channels-last as cuDNN does, and stop after code generation."""
    triton.runtime.driver.set_active(_Driver())
    fake_tensor.init_gpu_context = _value(None)  # type: ignore[assignment]
    select_backend = torch._C._select_conv_backend
    choose_format = torch._C._conv_determine_backend_memory_format

    def select(input: Any, *rest: Any, **options: Any) -> Any:  # noqa: A002
        if input.device.type == "cuda":
            return torch._C._ConvBackend.Cudnn  # type: ignore[attr-defined]
        return select_backend(input, *rest, **options)

    def memory_format(input: Any, weight: Any, backend: Any) -> Any:  # noqa: A002
        if input.device.type != "cuda":
            return choose_format(input, weight, backend)
        formats = [torch._prims_common.suggest_memory_format(tensor) for tensor in (input, weight)]
        return torch.channels_last if torch.channels_last in formats else torch.contiguous_format

    torch._C._select_conv_backend = select
    torch._C._conv_determine_backend_memory_format = memory_format

    def generate(self: GraphLowering, *_: Any, **__: Any) -> Any:
        code: Any = self.codegen()
        code = code[0] if isinstance(code, tuple) else code
        raise _Stop(code.value if hasattr(code, "value") else str(code))

    GraphLowering._compile_to_module = generate  # type: ignore[method-assign]
    GraphLowering.compile_to_module = generate  # type: ignore[method-assign]


_prepare_process()


def _on_cuda(graph: Any, example_inputs: Any) -> tuple[Any, list[Any], Any]:
    """The same graph, and its inputs, on the simulated device."""
    values = (node.meta.get("val") for node in graph.graph.nodes)
    mode = next(value.fake_mode for value in values if isinstance(value, fake_tensor.FakeTensor))
    moved: dict[int, tuple[Any, Any]] = {}

    def move(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) not in moved:
            with mode:
                twin = torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device=CUDA)
            moved[id(value)] = (twin, value)
        return moved[id(value)][0]

    for node in graph.graph.nodes:
        for key in {"val", "example_value"} & set(node.meta):
            node.meta[key] = pytree.tree_map(move, node.meta[key])
        node.meta.pop("tensor_meta", None)
        node.kwargs, node.args = pytree.tree_map(
            lambda item: CUDA if isinstance(item, torch.device) else item, (node.kwargs, node.args),
            is_leaf=lambda item: isinstance(item, torch.fx.Node | torch.device),
        )  # fmt: skip
    graph.recompile()
    return graph, [move(value) for value in example_inputs], mode


def _generate(function: str, graphs: list[Graph], graph: Any, example_inputs: Any, **options: Any) -> Any:
    """Inductor's inner compiler, which here only generates code; returns a function that gives empty results."""
    original = copy.deepcopy(graph)
    part = "backward" if options.get("is_backward") else "inference" if options.get("is_inference") else "forward"
    try:
        with _pretended_h100():
            moved, inputs, mode = _on_cuda(graph, example_inputs)
            context: Any = contextlib.nullcontext()
            if torch._guards.TracingContext.try_get() is None:
                context = torch._guards.tracing(torch._guards.TracingContext(mode))
            with context:
                _inner(moved, inputs, **options)
    except _Stop as stop:
        graphs.append(Graph(function, part, stop.source, *_count(stop.source)))
    (outputs,) = (node.args[0] for node in original.graph.nodes if node.op == "output")

    def run(*_: Any) -> list[Any]:
        found = [node.meta.get("val") if isinstance(node, torch.fx.Node) else None for node in outputs]
        return [
            torch.empty_strided(tuple(map(int, value.size())), tuple(map(int, value.stride())), dtype=value.dtype)
            if isinstance(value, torch.Tensor) else None
            for value in found
        ]  # fmt: skip

    return make_boxed_func(run)


_inner = compile_fx.compile_fx_inner


@contextlib.contextmanager
def generated_code() -> Iterator[list[Graph]]:
    """In this context, torch.compile only generates code, which is collected; compiled functions give empty results."""
    graphs: list[Graph] = []

    def generate(function: Any, *, dynamic: bool, options: Any = None) -> Any:
        name = function.__name__

        def backend(graph: Any, example_inputs: Any) -> Any:
            return compile_fx.compile_fx(
                graph, example_inputs, inner_compile=partial(_generate, name, graphs), config_patches=options
            )

        return _compile(function, backend=backend, dynamic=dynamic)

    with mock.patch.object(torch, "compile", generate):
        yield graphs


def kernel_sources(source: str) -> dict[str, str]:
    """The Triton kernels of a generated module by name, each a module of its own."""
    return dict(re.findall(r"^(\w+) = async_compile\.triton\('\w+', '''(.*?)''', device_str", source, re.S | re.M))


def import_kernel(name: str, source: str, folder: Path) -> ModuleType:
    """Import a kernel's module from a file, because Triton reads a kernel's source."""
    path = folder / f"{name}.py"
    path.write_text(source, encoding="utf-8")
    spec = util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compile_kernels(source: str) -> int:
    """Compile each Triton kernel of a generated module for sm_90, as Inductor does, and return their number."""
    kernels = kernel_sources(source)
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(triton_helpers, "set_driver_to_gpu"):
        for name, body in kernels.items():
            module = import_kernel(name, body, Path(folder))
            (kernel,) = (value for value in vars(module).values() if isinstance(value, CachingAutotuner))
            kernel._precompile_config(kernel.configs[0])
    return len(kernels)


def _count(source: str) -> tuple[list[Launch], Counter[str]]:
    """The launches and library calls in the `call` function of a generated module."""
    kernels = kernel_sources(source)
    call = source[source.index("def call(self, args)") :]
    sizes: dict[str, int] = {}
    launches: list[Launch] = []
    externs: Counter[str] = Counter()
    for line in map(str.strip, call.splitlines()):
        shaped = re.match(r"(\w+) = empty_strided_\w+\((\([^)]*\)), ", line) or re.match(
            r"assert_(?:size_stride|tensor_metadata)\((\w+), (\([^)]*\))", line
        )
        if shaped:
            sizes[shaped[1]] = _num_elements(shaped[2])
        elif found := re.match(r"assert_size_stride_grouped\(\(([^)]*)\), \((.*?)\), \(\(", line):
            names = [name.strip() for name in found[1].split(",") if name.strip()]
            sizes |= zip(names, map(_num_elements, re.findall(r"\(([^()]*)\)", found[2] + ")")), strict=False)
        elif found := re.match(r"(\w+) = reinterpret_tensor\(\w+, (\([^)]*\))", line):
            sizes[found[1]] = _num_elements(found[2])
        elif found := re.match(r"(\w+) = (\w+)(?:; del|$)", line):
            sizes[found[1]] = sizes.get(found[2], 0)
        if found := re.match(r"(\w+)\.run\((.*), stream=", line):
            launches.append(_launch(found[1], kernels[found[1]], _arguments(found[2]), sizes))
        elif (found := re.search(r"(?:extern_kernels|torch\.ops\.\w+)\.(\w+)", line)) and "assert" not in line:
            externs[found[1]] += 1
    return launches, externs


def _launch(name: str, body: str, values: list[str], sizes: dict[str, int]) -> Launch:
    signature = re.search(r"'signature': \{(.*?)\}", body)
    assert signature is not None
    num_read = num_written = 0
    moved = []
    for (argument, kind), value in zip(re.findall(r"'(\w+)': '([^']+)'", signature[1]), values, strict=False):
        if kind.startswith("*"):
            view = re.match(r"reinterpret_tensor\(\w+, (\([^)]*\))", value)
            num_bytes = _SIZES[kind[1:]] * (_num_elements(view[1]) if view else sizes[value])
            moved.append((argument, num_bytes))
    written = sum(num_bytes for argument, num_bytes in moved if argument.startswith(("out", "in_out")))
    is_gather = "index out of bounds" in body
    for argument, num_bytes in moved:
        if argument.startswith("out"):
            num_written += num_bytes
        elif argument.startswith("in_out"):
            num_read, num_written = num_read + num_bytes, num_written + num_bytes
        else:
            num_read += min(num_bytes, written) if is_gather else num_bytes
    return Launch(name, num_read, num_written)


def _arguments(text: str) -> list[str]:
    """A call's arguments, which may be calls themselves."""
    depth, start, found = 0, 0, []
    for position, character in enumerate(text):
        depth += (character in "([") - (character in ")]")
        if character == "," and not depth:
            found.append(text[start:position].strip())
            start = position + 1
    return [*found, text[start:].strip()]


def _num_elements(shape: str) -> int:
    product = 1
    for size in re.findall(r"\d+", shape):
        product *= int(size)
    return product
