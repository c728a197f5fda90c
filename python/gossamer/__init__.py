"""Gossamer: a sparse-training engine for PyTorch.

Names are loaded when they are first used: patterns need no torch, and `gossamer --help` is instant.

>>> import gossamer
>>> gossamer.parse_pattern("2:4:v4")
NM(n=2, m=4, vector=4)
"""

TYPE_CHECKING = False  # as a plain name: `typing` takes most of the import

if TYPE_CHECKING:
    from gossamer import (
        activations,
        backend,
        codes,
        distributed,
        io,
        masks,
        nn,
        ops,
        optim,
        ot,
        patterns,
        profiling,
        prox,
        pruning,
        recipes,
        schedules,
        timing,
        train,
    )
    from gossamer.backend import info, isa, isas, use_isa
    from gossamer.errors import (
        ArgumentError,
        CheckpointError,
        ConvergenceWarning,
        DataError,
        DeviceError,
        DTypeError,
        GossamerError,
        PatternError,
        PenaltyError,
        ProblemError,
        RecipeError,
        ScheduleError,
        ShapeError,
        StructureError,
    )
    from gossamer.io import check_state, load, save
    from gossamer.nn import (
        SparseConv1d,
        SparseConv2d,
        SparseConv3d,
        SparseLinear,
        densify,
        sparsify,
        sparsify_activations,
    )
    from gossamer.nn.parameter_groups import parameter_groups
    from gossamer.nn.summary import summary
    from gossamer.ops import sddmm, spmm, spmm_t
    from gossamer.patterns import (
        NM,
        Block,
        GroupedNM,
        Nonzeros,
        Pattern,
        Unstructured,
        parse_pattern,
    )
    from gossamer.profiling import profile
    from gossamer.pruning import net_trim, optimal_prune, prune, shrink
    from gossamer.weight import SparseWeight

    __version__: str


# Where each name lives. A module's own name stands for the module.
_HOMES = {
    "activations": ("activations",),
    "backend": ("backend", "info", "isa", "isas", "use_isa"),
    "codes": ("codes",),
    "distributed": ("distributed",),
    "errors": (
        "ArgumentError",
        "CheckpointError",
        "ConvergenceWarning",
        "DTypeError",
        "DataError",
        "DeviceError",
        "GossamerError",
        "PatternError",
        "PenaltyError",
        "ProblemError",
        "RecipeError",
        "ScheduleError",
        "ShapeError",
        "StructureError",
    ),
    "io": ("io", "check_state", "load", "save"),
    "nn": (
        "nn",
        "SparseConv1d",
        "SparseConv2d",
        "SparseConv3d",
        "SparseLinear",
        "densify",
        "parameter_groups",
        "sparsify",
        "sparsify_activations",
        "summary",
    ),
    "ops": ("ops", "sddmm", "spmm", "spmm_t"),
    "optim": ("optim",),
    "ot": ("ot",),
    "patterns": (
        "patterns",
        "NM",
        "Block",
        "GroupedNM",
        "Nonzeros",
        "Pattern",
        "Unstructured",
        "parse_pattern",
    ),
    "profiling": ("profiling", "profile"),
    "prox": ("prox",),
    "pruning": ("pruning", "net_trim", "optimal_prune", "prune", "shrink"),
    "recipes": ("recipes",),
    "schedules": ("schedules",),
    "masks": ("masks",),
    "timing": ("timing",),
    "train": ("train",),
    "weight": ("SparseWeight",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "NM",
    "ArgumentError",
    "Block",
    "CheckpointError",
    "ConvergenceWarning",
    "DTypeError",
    "DataError",
    "DeviceError",
    "GossamerError",
    "GroupedNM",
    "Nonzeros",
    "Pattern",
    "PatternError",
    "PenaltyError",
    "ProblemError",
    "RecipeError",
    "ScheduleError",
    "ShapeError",
    "SparseConv1d",
    "SparseConv2d",
    "SparseConv3d",
    "SparseLinear",
    "SparseWeight",
    "StructureError",
    "Unstructured",
    "activations",
    "backend",
    "check_state",
    "codes",
    "densify",
    "distributed",
    "info",
    "io",
    "isa",
    "isas",
    "load",
    "masks",
    "net_trim",
    "nn",
    "ops",
    "optim",
    "optimal_prune",
    "ot",
    "parameter_groups",
    "parse_pattern",
    "patterns",
    "profile",
    "profiling",
    "prox",
    "prune",
    "pruning",
    "recipes",
    "save",
    "schedules",
    "sddmm",
    "shrink",
    "sparsify",
    "sparsify_activations",
    "spmm",
    "spmm_t",
    "summary",
    "timing",
    "train",
    "use_isa",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version  # tens of milliseconds: on first use only

        value: object = version("gossamer")
        globals()[name] = value
        return value
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'gossamer' has no attribute {name!r}")
    from importlib import import_module  # half of the time of `import gossamer`

    module = import_module(f"gossamer.{home}")
    value = module if name == home else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
