"""A pattern from outside the package: each row keeps the best of the columns near the diagonal."""

from dataclasses import dataclass

import torch

import gossamer


# --8<-- [start:pattern]
@gossamer.patterns.register_pattern
@dataclass(frozen=True)
class Band(gossamer.Pattern):
    """`kept` of the `width` columns around a row's place on the diagonal; "band 4 of 16"."""

    kept: int
    width: int

    def __str__(self):
        return f"band {self.kept} of {self.width}"

    @classmethod
    def parse(cls, text):  # noqa: D102 - the protocol says it
        kept, of, width = text.removeprefix("band ").partition(" of ")
        return cls(int(kept), int(width)) if of and text.startswith("band ") else None

    def check_shape(self, rows, cols, who="weight"):  # noqa: D102
        if not 0 < self.kept <= self.width <= cols:
            self.refuse(f"place in {who} [{rows}, {cols}]", "take 0 < kept <= width <= columns")

    def count(self, rows, cols):  # noqa: D102
        return rows * self.kept


@gossamer.patterns.register_sparsifier(Band)
def best_of_band(score, pattern):
    """Return the best scores of each row, among the columns of its band."""
    first = torch.linspace(0, score.shape[1] - pattern.width, len(score)).long()
    columns = first[:, None] + torch.arange(pattern.width)
    kept = gossamer.masks.top(score.gather(1, columns), pattern.kept)
    return torch.zeros_like(score, dtype=torch.bool).scatter(1, columns, kept)
    # --8<-- [end:pattern]


def main(steps=200, pattern="band 4 of 16"):
    """Learn a shift of the input with two layers of bands, whose masks SET moves."""
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64))
    recipe = gossamer.recipes.SET(pattern, every=10)
    optimizer = torch.optim.AdamW(recipe.parameters(recipe.prepare(model)), lr=1e-2)
    recipe.attach(model, optimizer, total_steps=steps)
    for _ in range(steps):
        loss = (model(x := torch.randn(32, 64)) - x.roll(3, dims=1)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return recipe.finish(model), float(loss.detach())


if __name__ == "__main__":
    print(gossamer.summary(main()[0]))
