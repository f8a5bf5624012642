"""Products of llama.cpp's ggml, measured in an environment of their own: answers lines of JSON with seconds.

    PYTHON ggml_products.py      PYTHON has the package llama-cpp-python, whose libraries are called by ctypes

`products.py` starts it. A line asks for `type` (f32, q4_0, q4_k, q8_0, ...), `rows`, `columns`, `copies` of the matrix
that are multiplied one after the other, `tokens`, `threads`; weights lie in the buffer type that llama.cpp itself
chooses, which rearranges them for the processor. `sweep` bytes are read before each of `rounds` goes. The answer:
seconds for one matrix in the fastest.
"""

import ctypes
import json
import sys
import time
from importlib.metadata import distribution
from pathlib import Path

_P, _I, _L = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_TYPES = {"f32": 0, "q4_0": 2, "q8_0": 8, "q2_k": 10, "q3_k": 11, "q4_k": 12, "q6_k": 14}


class _Params(ctypes.Structure):
    _fields_ = (("size", ctypes.c_size_t), ("buffer", _P), ("no_alloc", ctypes.c_bool))


def libraries() -> tuple[ctypes.CDLL, ctypes.CDLL]:
    """ggml's base and its CPU part, typed."""
    folder = Path(str(distribution("llama-cpp-python").locate_file("llama_cpp/lib")))
    base = ctypes.CDLL(str(folder / "libggml-base.so"), ctypes.RTLD_GLOBAL)
    cpu = ctypes.CDLL(str(folder / "libggml-cpu.so"), ctypes.RTLD_GLOBAL)
    kinds = [
        (base.ggml_init, _P, [_Params]),
        (base.ggml_free, None, [_P]),
        (base.ggml_new_tensor_2d, _P, [_P, _I, _L, _L]),
        (base.ggml_mul_mat, _P, [_P, _P, _P]),
        (base.ggml_new_graph, _P, [_P]),
        (base.ggml_build_forward_expand, None, [_P, _P]),
        (base.ggml_quantize_chunk, ctypes.c_size_t, [_I, _P, _P, _L, _L, _L, _P]),
        (base.ggml_nbytes, ctypes.c_size_t, [_P]),
        (base.ggml_backend_alloc_ctx_tensors_from_buft, _P, [_P, _P]),
        (base.ggml_backend_tensor_set, None, [_P, _P, ctypes.c_size_t, ctypes.c_size_t]),
        (base.ggml_backend_buffer_free, None, [_P]),
        (base.ggml_backend_graph_compute, _I, [_P, _P]),
        (base.ggml_row_size, ctypes.c_size_t, [_I, _L]),
        (cpu.ggml_backend_cpu_init, _P, []),
        (cpu.ggml_backend_cpu_set_n_threads, None, [_P, _I]),
        (base.ggml_backend_cpu_buffer_type, _P, []),
        (cpu._Z35ggml_backend_cpu_repack_buffer_typev, _P, []),
    ]
    for function, result, arguments in kinds:
        function.restype, function.argtypes = result, arguments
    return base, cpu


def measure(base: ctypes.CDLL, cpu: ctypes.CDLL, ask: dict) -> float:
    """Seconds for one matrix."""
    import numpy

    kind, rows, columns, copies = _TYPES[ask["type"]], ask["rows"], ask["columns"], ask["copies"]
    weights = base.ggml_init(_Params(1 << 20, None, True))
    around = base.ggml_init(_Params(1 << 22, None, True))
    matrices = [base.ggml_new_tensor_2d(weights, kind, columns, rows) for _ in range(copies)]
    x = base.ggml_new_tensor_2d(around, 0, columns, ask["tokens"])
    graph = base.ggml_new_graph(around)
    for matrix in matrices:
        base.ggml_build_forward_expand(graph, base.ggml_mul_mat(around, matrix, x))
    of_type = cpu._Z35ggml_backend_cpu_repack_buffer_typev() if ask["type"] in ("q4_0", "q4_k") else None
    held = base.ggml_backend_alloc_ctx_tensors_from_buft(
        weights, of_type or base.ggml_backend_cpu_buffer_type()
    )
    other = base.ggml_backend_alloc_ctx_tensors_from_buft(around, base.ggml_backend_cpu_buffer_type())
    generator = numpy.random.default_rng(0)
    floats = generator.standard_normal((rows, columns), dtype=numpy.float32)
    size = base.ggml_row_size(kind, columns) * rows
    packed = numpy.empty(size, numpy.uint8)
    if kind == 0:
        packed = floats.view(numpy.uint8)
    else:
        base.ggml_quantize_chunk(kind, floats.ctypes.data, packed.ctypes.data, 0, rows, columns, None)
    for matrix in matrices:
        base.ggml_backend_tensor_set(matrix, packed.ctypes.data, 0, size)
    x_data = generator.standard_normal((ask["tokens"], columns), dtype=numpy.float32)
    base.ggml_backend_tensor_set(x, x_data.ctypes.data, 0, x_data.nbytes)
    backend = cpu.ggml_backend_cpu_init()
    cpu.ggml_backend_cpu_set_n_threads(backend, ask["threads"])
    times, sweep = [], numpy.ones(ask["sweep"] // 4, numpy.int32)
    for _ in range(ask["rounds"] + 1):
        sweep.sum()
        start = time.perf_counter()
        base.ggml_backend_graph_compute(backend, graph)
        times.append((time.perf_counter() - start) / copies)
    for buffer in (held, other):
        base.ggml_backend_buffer_free(buffer)
    for context in (weights, around):
        base.ggml_free(context)
    return min(times[1:])


if __name__ == "__main__":
    base, cpu = libraries()
    for line in sys.stdin:
        ask = json.loads(line)
        print(json.dumps({"seconds": measure(base, cpu, ask)}), flush=True)
