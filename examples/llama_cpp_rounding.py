"""What llama.cpp's own quantizer makes of a GGUF file, without building llama.cpp.

The `gguf` package has the rounding of Q4_0 as llama.cpp has it, to the last bit: the tensors are those of
`llama-quantize --allow-requantize SOURCE TARGET Q4_0`, compared for SmolLM2-135M. Matrices of the blocks are rounded,
each by itself; everything else is copied.
"""

from pathlib import Path

import gguf

TYPE = gguf.GGMLQuantizationType.Q4_0


def write_q4_0(source: Path, target: Path) -> None:
    """Write TARGET, where the matrices of SOURCE's blocks are Q4_0."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
            items = field.types[-1] if field.types[0] is gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], items)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    for tensor in reader.tensors:
        data, kind = tensor.data, tensor.tensor_type
        if tensor.name.startswith("blk.") and len(tensor.shape) == 2:
            data, kind = gguf.quantize(gguf.dequantize(data, kind), TYPE), TYPE
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
