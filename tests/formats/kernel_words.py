"""GPTQ's and AWQ's words read by plain formulas, one number at a time, as the kernels of clients do."""

from collections.abc import Callable

import torch

Tensors = dict[str, torch.Tensor]
# From a row of stored words to the zero points that a client computes with.
ReadZeros = Callable[[list[int], int], list[int]]
AWQ_SHIFTS = (0, 16, 4, 20, 8, 24, 12, 28)  # of the outputs 0 to 7 in a word


def stream(words: list[int], bits: int) -> list[int]:
    """Codes of a stream of bits; 32 codes of three bits take three words, two of the codes cross a border."""
    number = sum((word % 2**32) << (32 * place) for place, word in enumerate(words))
    return [number >> (bits * place) & (2**bits - 1) for place in range(32 * len(words) // bits)]


def three_bits(words: list[int]) -> list[int]:
    """The same for three bits as AutoGPTQ's kernel has it: 10 codes, 2 + 1 bits, 10 codes, 1 + 2 bits, 10 codes."""
    codes = []
    for first, second, third in zip(words[0::3], words[1::3], words[2::3], strict=True):
        first, second, third = first % 2**32, second % 2**32, third % 2**32
        codes += [first >> 3 * i & 7 for i in range(10)] + [first >> 30 | (second & 1) << 2]
        codes += [second >> 3 * i + 1 & 7 for i in range(10)] + [second >> 31 | (third & 3) << 1]
        codes += [third >> 3 * i + 2 & 7 for i in range(10)]
    return codes


def as_stored(words: list[int], bits: int) -> list[int]:
    """Zero points of the second version."""
    return stream(words, bits)


def one_more(words: list[int], bits: int) -> list[int]:
    """Kernels that add one to each code and cut off nothing."""
    return [code + 1 for code in stream(words, bits)]


def one_more_cut_off(words: list[int], bits: int) -> list[int]:
    """Kernels that cut off what is beyond the largest code."""
    return [(code + 1) % 2**bits for code in stream(words, bits)]


def one_more_in_words(words: list[int], bits: int) -> list[int]:
    """A client that adds ones to whole words (GPTQModel): a carry goes into the next code."""
    number = sum((word % 2**32) << (32 * place) for place, word in enumerate(words))
    ones = sum(1 << (bits * place) for place in range(32 * len(words) // bits))
    total = number + ones
    return [total >> (bits * place) & (2**bits - 1) for place in range(32 * len(words) // bits)]


FIRST_VERSION: tuple[ReadZeros, ...] = (one_more, one_more_cut_off, one_more_in_words)


def gptq_weight(tensors: Tensors, bits: int, read_zeros: ReadZeros, width: int) -> torch.Tensor:
    """`[out, in]` fp32; `width` of a group counts where there is no `g_idx`."""
    codes = torch.tensor([stream(column, bits) for column in tensors["qweight"].t().tolist()])
    zeros = torch.tensor([read_zeros(row, bits) for row in tensors["qzeros"].tolist()])
    out, inputs = codes.shape
    groups = tensors["g_idx"].tolist() if "g_idx" in tensors else [i // width for i in range(inputs)]
    weight = torch.empty(out, inputs)
    for place, group in enumerate(groups):
        weight[:, place] = (codes[:, place] - zeros[group]) * tensors["scales"][group].float()
    return weight


def awq_weight(tensors: Tensors, width: int) -> torch.Tensor:
    """`[out, in]` fp32."""

    def outputs(words: torch.Tensor) -> torch.Tensor:
        return torch.tensor(
            [[word % 2**32 >> shift & 15 for word in row for shift in AWQ_SHIFTS] for row in words.tolist()]
        )

    codes, zeros = outputs(tensors["qweight"]), outputs(tensors["qzeros"])
    weight = torch.empty(codes.shape[1], codes.shape[0])
    for place in range(len(codes)):
        group = place // width
        weight[:, place] = (codes[place] - zeros[group]) * tensors["scales"][group].float()
    return weight
