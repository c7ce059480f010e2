"""Products with packed weights against the matrix that is really in there, which looking up every row brings out."""

from __future__ import annotations

import math

import pytest
import torch

from quire.ops.cpu import table
from quire.ops.cpu.program import using
from quire.ops.cpu.weights import FORMATS, PackedMatrix, packed_bytes

INTEGERS = ("int8", "int4")
BYTE_DOTS = ("avx512vnni", "avx512bf16")
"""Instruction sets that multiply integer weights with bytes."""
SIZES = [(1, 1), (17, 31), (33, 64), (100, 129)]
"""Output rows and columns of a weight."""
ROWS = [0, 1, 2, 3, 4, 5, 6, 13, 70]


def packed(weight, weight_format):
    matrix = PackedMatrix(*weight.shape, weight_format)
    matrix.fill(weight, 0)
    return matrix


def contents(matrix):
    """The matrix as float32 numbers."""
    return table.packed_embedding(torch.arange(matrix.rows), matrix, scale=1.0, offset=0)


def allowed_error(x, weight, weight_format, isa):
    """Per output of x [T, K] · weightᵀ. Sums of K float32 products, each exact to 2⁻²⁴, in order: their rounding grows
    like the square root of K; 1e-6 of Σ|x·w| is several times that. Other formats round x besides: to bfloat16, to 127
    steps of the largest in a group of 32, or to 32767 steps of the row's largest where there are no dots of bytes."""
    error = 1e-6 * (x.abs() @ weight.abs().t()) + 1e-7
    if weight_format == "bfloat16_dot":
        return error + 2**-8 * (x.abs() @ weight.abs().t())
    if weight_format in INTEGERS:
        group, steps = (32, 127) if isa in BYTE_DOTS else (weight.shape[1], 32767)
        for start in range(0, weight.shape[1], group):
            part = slice(start, start + group)
            error += x[:, part].abs().amax(1, keepdim=True) / steps * 0.505 * weight[:, part].abs().sum(1)
    return error


@pytest.mark.parametrize("weight_format", FORMATS)
def test_products_are_those_of_the_dequantized_matrix(pool, memory, random, weight_format):
    for rows, columns in SIZES:
        matrix, bias = packed(random(rows, columns), weight_format), random(rows)
        weight = contents(matrix).double()
        for tokens in ROWS:
            x = random(tokens, columns, scale=2.0)
            expected = x.double() @ weight.t()
            allowed = allowed_error(x.double(), weight, weight_format, pool.instruction_set)
            ours = table.packed_linear(memory.fused(x), matrix, None)
            assert ours.shape == (tokens, rows)
            assert ((ours - expected).abs() <= allowed).all(), (rows, columns, tokens)
            ours = table.packed_linear(memory.filled(x), matrix, memory.filled(bias))
            assert ((ours - expected - bias).abs() <= allowed + 1e-6).all(), (rows, columns, tokens)


def groups_of(weight, size):
    return [weight[:, start : start + size] for start in range(0, weight.shape[1], size)]


def test_packing_to_floats_rounds_to_the_nearest(isa, pool_of, random):
    with using(pool_of(isa, 2)):
        for rows, columns in SIZES:
            weight = random(rows, columns)
            assert torch.equal(contents(packed(weight, "float32")), weight)
            for weight_format in ("bfloat16", "bfloat16_dot"):
                assert torch.equal(contents(packed(weight, weight_format)), weight.bfloat16().float())


@pytest.mark.parametrize(("weight_format", "steps"), [("int8", 127), ("int4", 7)])
def test_integers_lose_no_more_than_even_steps_on_both_sides_would(isa, pool_of, random, weight_format, steps):
    """Their range has one number more on one side, and the scale with the least squared error is looked for."""
    with using(pool_of(isa, 2)):
        for rows, columns in SIZES:
            weight = random(rows, columns)
            found = contents(packed(weight, weight_format))
            for ours, part in zip(groups_of(found, 32), groups_of(weight, 32), strict=True):
                step = (part.abs().amax(1, keepdim=True) / steps).bfloat16().float()
                plain = (part / step).round().clamp(-steps, steps) * step
                loss, plain_loss = ((x - part).square().sum(1) for x in (ours, plain))
                assert (loss <= plain_loss * 1.0001 + 1e-12).all(), (rows, columns)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_weights_are_packed_from_every_float_type_and_orientation(isa, pool_of, random, dtype):
    """S18: checkpoints hold them as [out, in], as [in, out], as parts, and with rows apart."""
    with using(pool_of(isa, 2)):
        weight = random(37, 21).to(dtype)
        expected = weight.float()
        assert torch.equal(contents(packed(weight, "float32")), expected)
        assert torch.equal(contents(packed(weight.t().contiguous().t(), "float32")), expected)
        wide = random(37, 42).to(dtype)
        assert torch.equal(contents(packed(wide[:, ::2], "float32")), wide[:, ::2].float())
        assert torch.equal(contents(packed(weight, "bfloat16")), weight.bfloat16().float())
        parts = PackedMatrix(37, 21, "float32")
        for start, stop in ((0, 5), (5, 16), (16, 36), (36, 37)):
            parts.fill(weight[start:stop], start)
        assert torch.equal(contents(parts), expected)


def test_half_precision_with_all_its_exponents_is_read_exactly(isa, pool_of):
    with using(pool_of(isa, 1)):
        halves = torch.arange(0, 1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16)
        halves = halves[halves.isfinite()][: 62 * 1024].view(62, 1024)
        assert torch.equal(contents(packed(halves, "float32")), halves.float())


@pytest.mark.parametrize("weight_format", FORMATS)
def test_looking_up_scales_and_shifts(pool, memory, random, weight_format):
    matrix = packed(random(40, 77), weight_format)
    whole = contents(matrix)
    ids = torch.tensor([3, 0, 35, 35, 17])
    ours = table.packed_embedding(memory.filled(ids), matrix, scale=1.5, offset=2)
    assert torch.equal(ours, whole[ids + 2] * 1.5)
    assert table.packed_embedding(ids[:0], matrix, scale=1.0, offset=0).shape == (0, 77)


@pytest.mark.parametrize("weight_format", FORMATS)
def test_a_row_has_the_same_bits_in_any_batch_place_and_with_any_number_of_threads(isa, pool_of, random, weight_format):
    """REL-15: batches of 1 to 70 rows, shallow and deep weights, one to three threads."""
    for rows, columns in ((75, 130), (40, 1100)):
        with using(pool_of(isa, 1)):
            matrix, bias, x = packed(random(rows, columns), weight_format), random(rows), random(70, columns)
            alone = torch.cat([table.packed_linear(x[i : i + 1], matrix, bias) for i in range(70)])
        for threads in (1, 2, 3):
            with using(pool_of(isa, threads)):
                for count in range(1, 71, 1 if columns < 200 else 6):
                    assert torch.equal(table.packed_linear(x[:count], matrix, bias), alone[:count]), count
                    assert torch.equal(table.packed_linear(x[70 - count :], matrix, bias), alone[70 - count :]), count


@pytest.mark.parametrize("weight_format", FORMATS)
def test_a_large_batch_has_the_bits_of_single_rows(isa, pool_of, random, weight_format):
    """Tiles that do not fit a thread's scratch."""
    with using(pool_of(isa, 1)):
        matrix, x = packed(random(70, 700), weight_format), random(400, 700)
        picked = [0, 1, 6, 127, 255, 256, 399]
        alone = torch.cat([table.packed_linear(x[i : i + 1], matrix, None) for i in picked])
    for threads in (1, 2):
        with using(pool_of(isa, threads)):
            assert torch.equal(table.packed_linear(x, matrix, None)[picked], alone)


@pytest.mark.parametrize("weight_format", FORMATS)
def test_numbers_that_are_none_stay_in_their_rows(pool, memory, random, weight_format):
    """REL-15: one request's NaN or infinity is not another's."""
    matrix, x = packed(random(33, 70), weight_format), random(9, 70)
    clean = table.packed_linear(memory.filled(x), matrix, None)
    for bad in (math.nan, math.inf, -math.inf):
        for row, column in ((0, 0), (4, 69), (8, 33)):
            spoilt = x.clone()
            spoilt[row, column] = bad
            ours = table.packed_linear(memory.filled(spoilt), matrix, None)
            assert not ours[row].isfinite().any()
            others = [i for i in range(9) if i != row]
            assert torch.equal(ours[others], clean[others])


@pytest.mark.parametrize("weight_format", INTEGERS)
def test_rows_of_zeros_and_of_extreme_size_are_multiplied(pool, random, weight_format):
    matrix = packed(random(20, 64), weight_format)
    x = random(3, 64)
    x[0] = 0.0
    x[1] *= 1e30
    x[2] *= 1e-30
    ours, weight = table.packed_linear(x, matrix, None), contents(matrix).double()
    assert torch.equal(ours[0], torch.zeros(20))
    error = (ours - x.double() @ weight.t()).abs()
    assert (error <= allowed_error(x.double(), weight, weight_format, pool.instruction_set)).all()


@pytest.mark.parametrize("weight_format", FORMATS)
def test_weights_of_zeros_give_zeros(isa, pool_of, weight_format):
    with using(pool_of(isa, 2)):
        matrix = packed(torch.zeros(18, 70), weight_format)
        assert torch.equal(contents(matrix), torch.zeros(18, 70))
        assert torch.equal(table.packed_linear(torch.ones(3, 70), matrix, None), torch.zeros(3, 18))


def test_what_does_not_fit_the_weight_is_refused(isa, pool_of, random):
    with using(pool_of(isa, 1)):
        matrix = packed(random(20, 64), "float32")
        for x, bias in (
            (random(3, 63), None),
            (random(3, 64).bfloat16(), None),
            (random(64), None),
            (random(3, 64), random(19)),
            (random(3, 64), random(20).bfloat16()),
            (random(3, 64), random(40)[::2]),
        ):
            with pytest.raises(ValueError, match="does not fit a weight \\[20, 64\\]"):
                table.packed_linear(x, matrix, bias)


def test_instruction_sets_agree(pool_of, random):
    """Their sums round differently, by no more than the formats allow."""
    from quire.base.cpu_kernels import instruction_sets

    x, weight = random(9, 150), random(50, 150)
    for weight_format in FORMATS:
        results = []
        for isa in instruction_sets():
            with using(pool_of(isa, 2)):
                matrix = packed(weight, weight_format)
                results.append((isa, contents(matrix), table.packed_linear(x, matrix, None)))
        for isa, found, result in results:
            assert torch.equal(found, results[0][1])
            exact = x.double() @ found.double().t()
            assert ((result - exact).abs() <= allowed_error(x.double(), found.double(), weight_format, isa)).all()


def test_packed_sizes_are_known_before_packing():
    """S9: memory is arithmetic before allocation."""
    assert packed_bytes(17, 65, "float32") == 2 * 65 * 64
    assert packed_bytes(17, 65, "bfloat16") == 2 * 65 * 32
    assert packed_bytes(17, 65, "bfloat16_dot") == 2 * 66 * 32
    assert packed_bytes(17, 65, "int8") == 2 * (96 * 16 + 128)
    assert packed_bytes(17, 65, "int4") == 2 * (96 * 8 + 128)
