"""Bad calls of the kernels: what to run, and the error that must come.

The names in the code are those that `fresh` in bad_input_worker.py makes: `s` is a structure of
8 x 20 with 4 rows a panel and pointers, `nm` one of 8 x 16 with 2:4; `values`, `x`, `g`, `mask` and
`big` belong to `s`, `nm_values`, `half` and `dense` to `nm`.
"""

from typing import NamedTuple


class Case(NamedTuple):
    name: str
    code: str
    error: str
    words: tuple[str, ...]


def cases_of(about: str, *rows: tuple[str, str, str, str]) -> list[Case]:
    """Cases from rows of (name, code, error class, words of the message with | between)."""
    return [
        Case(f"{about}: {name}", code, error, tuple(words.split("|")))
        for name, code, error, words in rows
    ]


# What is no operand, whichever verb it is given to; `t` is what would be right.
_NOT_AN_OPERAND = [
    ("a list", "t.tolist()", "DTypeError", "list"),
    ("None", "None", "DTypeError", "NoneType"),
    ("a text", "'x'", "DTypeError", "str"),
    ("a storage", "t.untyped_storage()", "DTypeError", "UntypedStorage"),
    ("int64", "t.long()", "DTypeError", "int64"),
    ("float16", "t.half()", "DTypeError", "float16"),
    ("bool", "t > 0", "DTypeError", "bool"),
    ("complex", "t + 0j", "DTypeError", "complex64"),
    ("float64 among float32", "t.double()", "DTypeError", "float64|float32"),
    ("NumPy objects", "t.numpy().astype(object)", "DTypeError", "'O'"),
    ("NumPy float16", "t.numpy().astype('f2')", "DTypeError", "'e'"),
    ("NumPy of the other byte order", "t.numpy().astype('>f4')", "DTypeError", ">f"),
    ("NumPy of nothing", "np.zeros(t.shape, 'V0')", "DTypeError", "needed"),
    ("NumPy of empty records", "np.zeros(t.shape, np.dtype([]))", "DTypeError", "needed"),
    (
        "NumPy off its alignment",
        "np.ndarray(t.shape, 'f4', bytes(9999), 1)",
        "ArgumentError",
        "aligned|copy",
    ),
    (
        "NumPy with odd strides",
        "np.ndarray(t.shape, 'f4', bytes(9999), 0, (150, 5))",
        "ArgumentError",
        "aligned|copy",
    ),
    ("sparse", "t.to_sparse()", "DTypeError", "to_dense"),
    ("CSR", "t.to_sparse_csr()", "DTypeError", "to_dense"),
    ("mkldnn", "t.to_mkldnn()", "DTypeError", "to_dense"),
    ("nested", "torch.nested.nested_tensor([t, t[:2]])", "DTypeError", "to_dense"),
    (
        "quantized",
        "torch.quantize_per_tensor(t, 1.0, 0, torch.quint8)",
        "DTypeError",
        "quint8",
    ),
    ("meta", "t.to('meta')", "DeviceError", "meta|.cpu()"),
    ("fake", "fake(t)", "DeviceError", "memory"),
    ("a scalar", "t[0, 0]", "ShapeError", "dimensions"),
    ("a vector", "t[0]", "ShapeError", "dimensions"),
    ("rank 3", "t[None]", "ShapeError", "dimensions"),
    ("a column too many", "torch.cat([t, t[:, :1]], 1)", "ShapeError", "needed"),
    ("a column too few", "t[:, 1:]", "ShapeError", "needed"),
    ("its transpose", "t.T", "ShapeError", "needed"),
]
_VERBS = {
    "spmm": ("x", "K.spmm(bad, values, s)"),
    "spmm_t": ("g", "K.spmm_t(bad, values, s)"),
    "packed spmm_t": ("g", "K.spmm_t(bad, values, s, K.transpose(s))"),
    "sddmm, x": ("x", "K.sddmm(g, bad, s)"),
    "sddmm, g": ("g", "K.sddmm(bad, x, s)"),
}
_OPERANDS = [
    Case(f"{verb}: {name}", f"t = {right}\nbad = {wrong}\n{call}", error, tuple(words.split("|")))
    for verb, (right, call) in _VERBS.items()
    for name, wrong, error, words in _NOT_AN_OPERAND
]

_BATCHES = cases_of(
    "batch",
    ("sddmm with two batches", "K.sddmm(g[:2], x, s)", "ShapeError", "grad_output|2 x 8|3 x 8"),
    ("sddmm, empty with full", "K.sddmm(g[:0], x, s)", "ShapeError", "grad_output"),
    (
        "storage was freed",
        "x.untyped_storage().resize_(0)\nK.spmm(x, values, s)",
        "DeviceError",
        "x|memory",
    ),
    (
        "too large to be allocated",
        "huge = x[:1].expand(2**45, 20)\nK.spmm(huge, values, s)",
        "RuntimeError",
        "memory",
    ),
    (
        "too large, spmm_t",
        "huge = g[:1].expand(2**44, 8)\nK.spmm_t(huge, values, s)",
        "RuntimeError",
        "memory",
    ),
)

_VALUES = cases_of(
    "values",
    ("a list", "K.spmm(x, values.tolist(), s)", "DTypeError", "values|list"),
    ("None", "K.spmm(x, None, s)", "DTypeError", "values|NoneType"),
    ("one too few", "K.spmm(x, values[1:], s)", "ShapeError", "values|entries"),
    ("one too many", "K.spmm_t(g, torch.ones(len(values) + 1), s)", "ShapeError", "values"),
    ("none", "K.spmm(x, values[:0], s)", "ShapeError", "values|got 0"),
    ("a matrix", "K.spmm(x, values.view(-1, 4), s)", "ShapeError", "values|vector"),
    ("with gaps", "K.spmm(x, values.repeat_interleave(2)[::2], s)", "ShapeError", "contiguous"),
    ("expanded", "K.spmm(x, values[:1].expand(len(values)), s)", "ShapeError", "contiguous"),
    ("int32", "K.spmm(x, values.int(), s)", "DTypeError", "values|int32"),
    ("float16", "K.spmm_t(g, values.half(), s)", "DTypeError", "values|float16"),
    ("another float", "K.spmm(x, values.double(), s)", "DTypeError", "float32|float64"),
    ("meta", "K.spmm_t(g, values.to('meta'), s)", "DeviceError", "values|meta"),
    ("fake", "K.spmm(x, fake(values), s)", "DeviceError", "values|memory"),
    ("sparse", "K.spmm(x, values.to_sparse(), s)", "DTypeError", "values|to_dense"),
    ("reversed", "r = values.numpy()[::-1]\nK.spmm(x, r, s)", "ShapeError", "contiguous"),
)
_BIAS = cases_of(
    "bias",
    ("a list", "K.spmm(x, values, s, [0.0] * 8)", "DTypeError", "bias|list"),
    ("too short", "K.spmm(x, values, s, torch.ones(7))", "ShapeError", "bias has 7|8 rows"),
    ("too long", "K.spmm(x, values, s, torch.ones(9))", "ShapeError", "bias has 9|8 rows"),
    ("a scalar", "K.spmm(x, values, s, torch.ones(()))", "ShapeError", "bias|one-dimensional"),
    ("a matrix", "K.spmm(x, values, s, torch.ones(1, 8))", "ShapeError", "bias|one-dimensional"),
    ("with gaps", "K.spmm(x, values, s, torch.ones(16)[::2])", "ShapeError", "bias|contiguous"),
    ("float64", "K.spmm(x, values, s, torch.ones(8).double())", "DTypeError", "bias|float64"),
    ("int64", "K.spmm(x, values, s, torch.arange(8))", "DTypeError", "bias|int64"),
    ("meta", "K.spmm(x, values, s, torch.ones(8, device='meta'))", "DeviceError", "bias|meta"),
)

# Structure that a verb is given; what a verb does not look at is in test_structure.py.
_STRUCTURE = cases_of(
    "structure",
    ("None", "K.spmm(x, values, None)", "DTypeError", "structure|NoneType"),
    ("a tuple", "K.spmm(x, values, tuple(s))", "DTypeError", "structure|tuple|encode"),
    ("a mask", "K.spmm_t(g, values, mask)", "DTypeError", "structure|Tensor|encode"),
    ("a weight", "K.sddmm(g, x, w)", "DTypeError", "structure|SparseWeight"),
    ("layout is numbers", "K.spmm(x, values, s._replace(layout=s.layout.as_ints()))",
     "DTypeError", "structure"),
    ("indices a list", "K.spmm(x, values, s._replace(indices=[0]))", "DTypeError", "indices"),
    ("indices None", "K.spmm(x, values, s._replace(indices=None))", "DTypeError", "indices"),
    ("indices int64", "K.spmm(x, values, s._replace(indices=s.indices.long()))", "DTypeError",
     "indices|int64|uint8"),
    ("indices int8", "K.spmm(x, values, s._replace(indices=s.indices.to(torch.int8)))",
     "DTypeError", "indices|int8|uint8"),
    ("indices a matrix", "K.spmm(x, values, s._replace(indices=s.indices[None]))", "ShapeError",
     "indices"),
    ("indices with gaps", "wide = s.indices.repeat_interleave(2)[::2]\n"
     "K.spmm(x, values, s._replace(indices=wide))", "ShapeError", "indices|contiguous"),
    ("indices meta", "K.spmm(x, values, s._replace(indices=s.indices.to('meta')))",
     "DeviceError", "indices|meta"),
    ("indices too few", "K.spmm(x, values, s._replace(indices=s.indices[1:]))",
     "StructureError", "indptr"),
    ("indices too few, 2:4", "K.spmm(x[:, :16], nm_values, nm._replace(indices=nm.indices[1:]))",
     "StructureError", "indices|needs 64"),
    ("no pointers", "K.spmm(x, values, s._replace(indptr=None))", "DTypeError", "indptr"),
    ("pointers int64", "K.spmm(x, values, s._replace(indptr=s.indptr.long()))", "DTypeError",
     "indptr|int64|int32"),
    ("pointers too few", "K.spmm(x, values, s._replace(indptr=s.indptr[:-1]))",
     "StructureError", "indptr has 2"),
    ("pointers a matrix", "K.spmm(x, values, s._replace(indptr=s.indptr[None]))", "ShapeError",
     "indptr"),
    ("pointers to 2:4", "K.spmm(x[:, :16], nm_values, nm._replace(indptr=s.indptr))",
     "StructureError", "indptr|N:M"),
    ("pointer negative", "p = s.indptr.clone(); p[1] = -1\n"
     "K.spmm(x, values, s._replace(indptr=p))", "StructureError", "does not rise"),
    ("pointer falls", "p = s.indptr.clone(); p[1] = p[2] + 1\n"
     "K.spmm_t(g, values, s._replace(indptr=p))", "StructureError", "does not rise"),
    ("pointer huge", "p = s.indptr.clone(); p[1] = 2**31 - 1\n"
     "K.sddmm(g, x, s._replace(indptr=p))", "StructureError", "does not rise"),
    ("pointers start late", "p = s.indptr.clone(); p[0] = 1\n"
     "K.spmm(x, values, s._replace(indptr=p))", "StructureError", "does not rise"),
    ("pointers end late", "p = s.indptr.clone(); p[-1] += 1\n"
     "K.spmm(x, values, s._replace(indptr=p))", "StructureError", "does not rise"),
    ("a layout far too large", "h = s._replace(layout=Layout(2**31 - 4, 2**31 - 1, 4, 256))\n"
     "K.sddmm(g, x, h)", "StructureError", "indptr|needed"),
    ("2:4 far too large", "h = nm._replace(layout=Layout(2**31 - 8, 2**31 - 64, 8, 256, 64, 64))\n"
     "K.sddmm(g, x, h)", "StructureError", "needs"),
    ("index out of range", "i = s.indices.clone(); i[-1] = 20\n"
     "K.validate(s._replace(indices=i))", "StructureError", "20|out of range"),
    ("index out of range, gather", "i = s.indices.clone(); i[0] = 255\n"
     "K.gather(big, s._replace(indices=i))", "StructureError", "255|out of range"),
    ("indices unsorted, scatter", "i = s.indices.flip(0)\nK.scatter(values, s._replace(indices=i))",
     "StructureError", "do not rise"),
    ("indices repeated, coordinates", "i = s.indices.clone(); i[1] = i[0]\n"
     "K.coordinates(s._replace(indices=i))", "StructureError", "repeats"),
    ("wrong group, transpose", "i = nm.indices.clone(); i[1] = 4\n"
     "K.transpose(nm._replace(indices=i))", "StructureError", "keep 2"),
    ("values too few, validate", "K.validate(s, nvalues=len(values) - 1)", "StructureError",
     "values"),
    ("validate None", "K.validate(None)", "DTypeError", "structure"),
    ("coordinates of a mask", "K.coordinates(mask)", "DTypeError", "structure"),
    ("transpose of a mask", "K.transpose(mask)", "DTypeError", "structure"),
)  # fmt: skip

_TRANSPOSED = cases_of(
    "transposed",
    ("of another weight", "K.spmm_t(g, values, s, K.transpose(nm))", "StructureError", "belong"),
    ("the structure itself", "K.spmm_t(g, values, s, s)", "DTypeError", "transposed"),
    ("True", "K.spmm_t(g, values, s, True)", "DTypeError", "transposed"),
    ("a pair", "K.spmm_t(g, values, s, (1, 2))", "DTypeError", "transposed"),
    ("perm int64", "t = K.transpose(s)\nK.spmm_t(g, values, s, t._replace(perm=t.perm.long()))",
     "DTypeError", "perm|int64"),
    ("perm too short", "t = K.transpose(s)\nK.spmm_t(g, values, s, t._replace(perm=t.perm[1:]))",
     "StructureError", "belong"),
    ("perm a list", "t = K.transpose(s)\n"
     "K.spmm_t(g, values, s, t._replace(perm=t.perm.tolist()))", "DTypeError", "perm|list"),
    ("perm meta", "t = K.transpose(s)\n"
     "K.spmm_t(g, values, s, t._replace(perm=t.perm.to('meta')))", "DeviceError", "perm|meta"),
    ("pointers fall", "t = K.transpose(s); p = t.structure.indptr.clone(); p[3] = 99\n"
     "K.spmm_t(g, values, s, t._replace(structure=t.structure._replace(indptr=p)))",
     "StructureError", "indptr"),
)  # fmt: skip

_ENCODE = cases_of(
    "encode",
    ("a list", "K.encode([[True]], 1)", "DTypeError", "mask|list"),
    ("None", "K.encode(None, 1)", "DTypeError", "mask|NoneType"),
    ("float32", "K.encode(dense, 1)", "DTypeError", "mask|float32|bool"),
    ("uint8", "K.encode(mask.to(torch.uint8), 1)", "DTypeError", "mask|uint8|bool"),
    ("NumPy objects", "K.encode(mask.numpy().astype(object), 1)", "DTypeError", "mask"),
    ("NumPy of nothing", "K.encode(np.zeros((8, 20), 'V0'), 1)", "DTypeError", "mask"),
    ("a vector", "K.encode(mask[0], 1)", "ShapeError", "mask|2 are needed"),
    ("rank 3", "K.encode(mask[None], 1)", "ShapeError", "mask|dimensions"),
    ("a scalar", "K.encode(mask[0, 0], 1)", "ShapeError", "mask|2 are needed"),
    ("meta", "K.encode(mask.to('meta'), 1)", "DeviceError", "mask|meta"),
    ("fake", "K.encode(fake(mask), 1)", "DeviceError", "mask|memory"),
    ("sparse", "K.encode(mask.to_sparse(), 1)", "DTypeError", "mask|to_dense"),
    ("vector 2", "K.encode(mask, 2)", "ArgumentError", "vector|1, 4 or 8"),
    ("vector 0", "K.encode(mask, 0)", "ArgumentError", "vector|1, 4 or 8"),
    ("vector -4", "K.encode(mask, -4)", "ArgumentError", "vector|1, 4 or 8"),
    ("vector 2**62", "K.encode(mask, 2**62)", "ArgumentError", "vector"),
    ("vector 2**70", "K.encode(mask, 2**70)", "ArgumentError", "vector"),
    ("vector 4.0", "K.encode(mask, 4.0)", "ArgumentError", "vector|4.0|integer"),
    ("vector a text", "K.encode(mask, '4')", "ArgumentError", "vector|integer"),
    ("vector None", "K.encode(mask, None)", "ArgumentError", "vector|integer"),
    ("rows off the panel", "K.encode(mask[:7], 4)", "ShapeError", "rows|multiple of 4"),
    ("n above m", "K.encode(half, 1, 5, 4)", "ArgumentError", "5:4|1 <= n <= m <= 64"),
    ("n negative", "K.encode(half, 1, -2, 4)", "ArgumentError", "1 <= n <= m"),
    ("m negative", "K.encode(half, 1, 2, -4)", "ArgumentError", "1 <= n <= m"),
    ("n without m", "K.encode(half, 1, 2)", "ArgumentError", "1 <= n <= m"),
    ("m without n", "K.encode(half, 1, 0, 4)", "ArgumentError", "1 <= n <= m"),
    ("m of 65", "K.encode(torch.ones(4, 130) > 0, 1, 65, 65)", "ArgumentError", "m <= 64"),
    ("m of 2**40", "K.encode(half, 1, 2, 2**40)", "ArgumentError", "m"),
    ("columns off the group", "K.encode(half[:, :14], 1, 2, 4)", "ShapeError", "multiple of m"),
    ("a panel with two lists", "mask[5, 7] ^= True\nK.encode(mask, 4)", "StructureError",
     "panel|row 5, column 7"),
    ("a group of three", "half[3, 6] = True\nK.encode(half, 1, 2, 4)", "StructureError",
     "keeps 3|row 3"),
    ("a group of none", "half[0, :4] = False\nK.encode(half, 1, 2, 4)", "StructureError",
     "keeps 0|columns 0..3"),
)  # fmt: skip

_LAYOUT = cases_of(
    "layout",
    ("rows negative", "Layout(-8, 16, 1, 256)", "ShapeError", "-8 x 16|negative"),
    ("columns negative", "Layout(8, -1, 1, 256)", "ShapeError", "negative"),
    ("rows 2**31", "Layout(2**31, 16, 1, 256)", "ShapeError", "2^31|split"),
    ("columns 2**62", "Layout(8, 2**62, 1, 256)", "ShapeError", "2^31|split"),
    ("vector 3", "Layout(9, 16, 3, 256)", "ArgumentError", "1, 4 or 8"),
    ("rows off the panel", "Layout(9, 16, 8, 256)", "ShapeError", "multiple of 8"),
    ("blocks of 0", "Layout(8, 16, 1, 0)", "ShapeError", "256 columns"),
    ("blocks of 128", "Layout(8, 16, 1, 128)", "ShapeError", "256 columns"),
    ("blocks of 512", "Layout(8, 16, 1, 512)", "ShapeError", "256 columns"),
    ("blocks negative", "Layout(8, 16, 1, -256)", "ShapeError", "256 columns"),
    ("3:6 in blocks of 256", "Layout(8, 12, 1, 256, 3, 6)", "ShapeError", "252 columns"),
    ("n above m", "Layout(8, 16, 1, 256, 5, 4)", "ArgumentError", "n <= m"),
    ("m of 128", "Layout(8, 128, 1, 256, 2, 128)", "ArgumentError", "m <= 64"),
    ("columns off the group", "Layout(8, 18, 1, 256, 2, 4)", "ShapeError", "multiple of m"),
)
_COPIES = cases_of(
    "dense",
    ("gather a list", "K.gather([[1.0]], s)", "DTypeError", "list"),
    ("gather other sizes", "K.gather(dense, s)", "ShapeError", "8 x 20"),
    ("gather the transpose", "K.gather(big.T, s)", "ShapeError", "8 x 20"),
    ("gather a vector", "K.gather(big.flatten(), s)", "ShapeError", "dense|2 are needed"),
    ("gather int64", "K.gather(big.long(), s)", "DTypeError", "int64"),
    ("gather meta", "K.gather(big.to('meta'), s)", "DeviceError", "meta"),
    ("gather strided NumPy", "K.gather(np.asfortranarray(big.numpy()), s)", "ShapeError",
     "contiguous"),
    ("scatter too few", "K.scatter(values[1:], s)", "ShapeError", "values"),
    ("scatter a matrix", "K.scatter(values[None], s)", "ShapeError", "values"),
    ("scatter a list", "K.scatter(values.tolist(), s)", "DTypeError", "list"),
    ("scatter int32", "K.scatter(values.int(), s)", "DTypeError", "int32"),
    ("scatter with gaps", "K.scatter(values.repeat_interleave(2)[::2], s)", "ShapeError",
     "contiguous"),
)  # fmt: skip
# Outputs are made by gossamer.backend; what the compiled module is handed, it checks all the same.
_OUTPUTS = cases_of(
    "output",
    ("read-only", "y = np.zeros((3, 8), 'f4'); y.flags.writeable = False\n"
     "CORE.products.spmm(x, values, *s, None, y)", "ArgumentError", "y|read-only"),
    ("read-only, spmm_t", "y = np.zeros((3, 20), 'f4'); y.flags.writeable = False\n"
     "CORE.products.spmm_t(g, values, *s, y)", "ArgumentError", "grad_input|read-only"),
    ("read-only, sddmm", "y = values.numpy(); y.flags.writeable = False\n"
     "CORE.products.sddmm(g, x, *s, y)", "ArgumentError", "grad_values|read-only"),
    ("broadcast by NumPy", "y = np.broadcast_to(np.zeros(8, 'f4'), (3, 8))\n"
     "CORE.products.spmm(x, values, *s, None, y)", "ArgumentError", "y|read-only"),
    ("too small", "y = torch.zeros(3, 7)\nCORE.products.spmm(x, values, *s, None, y)", "ShapeError",
     "y|3 x 8"),
    ("of another dtype",
     "y = torch.zeros(3, 8).double()\nCORE.products.spmm(x, values, *s, None, y)",
     "DTypeError", "y|float64"),
    ("bytes", "y = bytes(96)\nCORE.products.spmm(x, values, *s, None, y)", "DTypeError", "y|bytes"),
)  # fmt: skip
_TABLES = cases_of(
    "isa",
    ("unknown", "K.use_isa('sse9')", "ArgumentError", "sse9|reference"),
    ("another case", "K.use_isa('AVX2')", "ArgumentError", "AVX2|portable"),
    ("a number", "K.use_isa(5)", "DTypeError", "5"),
)

CASES = [
    *_OPERANDS, *_BATCHES, *_VALUES, *_BIAS, *_STRUCTURE, *_TRANSPOSED, *_ENCODE, *_LAYOUT,
    *_COPIES, *_OUTPUTS, *_TABLES,
]  # fmt: skip
