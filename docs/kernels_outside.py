"""Write the first table of docs/kernels.md, what each kernel can do in anyone's model.

python docs/kernels_outside.py

Every cell is tried out on small rows. ``tests/kernels/test_life_outside.py`` holds each of these to all examples of
all kernels, with gradients, and compares the page with this table.
"""

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsity_lab.kernels import Context, Kernel
from sparsity_lab.settings import SettingError, kinds

PAGE = Path(__file__).parent / "kernels.md"
BEGIN, END = "<!-- table from docs/kernels_outside.py -->", "<!-- end of what kernels can do -->"

B, H, D, T, PADDING = 2, 4, 8, 24, 5


def options_of(kernel: Kernel) -> dict[str, Any]:
    return {"params": kernel.build(kernel.own_heads(H, H), D, 0)}


def rows(length: int = T, width: int = D) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    return tuple(torch.randn(B, H, length, size, generator=generator) for size in (D, D, width))  # type: ignore[return-value]


def close(x: Tensor, y: Tensor, kernel: Kernel) -> bool:
    return bool((x - y).abs().max() <= 1e-4 * kernel.rounding * y.abs().max())


def compiled(kernel: Kernel) -> str:
    q, k, _ = rows()
    context = Context(implementation=kernel.implementation(q))
    return "PyTorch's kernel" if kernel._traceable(q, k, context) else "one operator"


def new_rows(kernel: Kernel) -> bool:
    q, k, v = rows()
    whole = kernel.attend(q, k, v, training=False, **options_of(kernel))
    last = kernel.attend(q[:, :, -3:], k, v, query_start=T - 3, training=False, **options_of(kernel))
    return close(last, whole[:, :, -3:], kernel)


def wide_values(kernel: Kernel) -> bool:
    return kernel.attend(*rows(width=12), **options_of(kernel)).shape[3] == 12


def documents(kernel: Kernel) -> str:
    ids = (torch.arange(T) // 9).expand(B, -1)
    served = []
    for training in (True, False):
        for implementation in ("auto", "reference"):
            try:
                kernel.attend(
                    *rows(), document_ids=ids, training=training, implementation=implementation, **options_of(kernel)
                )
            except SettingError as error:
                if error.path != "document_ids":
                    raise
                continue
            served.append((training, implementation))
    auto = [training for training, implementation in served if implementation == "auto"]
    if auto == [True, False]:
        return "yes"
    return "in training" if auto else "by the reference" if served else "refused"


def left_padding(kernel: Kernel) -> bool:
    alone = rows()
    key_mask = torch.arange(PADDING + T).expand(B, -1) >= PADDING
    padded = [torch.cat([torch.ones(B, H, PADDING, D), x], dim=2) for x in alone]
    expected = kernel.attend(*alone, training=False, **options_of(kernel))
    got = kernel.attend(*padded, key_mask=key_mask, training=False, **options_of(kernel))
    return close(got[:, :, PADDING:], expected, kernel)


def garbage(kernel: Kernel) -> bool:
    q, k, v = rows()
    key_mask = torch.arange(T).expand(B, -1) < T - PADDING
    expected = kernel.attend(q, k, v, key_mask=key_mask, **options_of(kernel))
    k, v = (x.masked_fill(~key_mask[:, None, :, None], 1e13) for x in (k, v))
    return close(kernel.attend(q, k, v, key_mask=key_mask, **options_of(kernel)), expected, kernel)


def autocast(kernel: Kernel) -> bool:
    q, k, v = rows()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return kernel.attend(q, k, v.bfloat16(), **options_of(kernel)).dtype == torch.bfloat16


def transforms(kernel: Kernel) -> bool:
    def loss(*rows: Tensor) -> Tensor:
        return kernel.attend(*rows, **options_of(kernel)).square().sum()

    q, k, v = rows()
    each = torch.vmap(torch.func.grad(loss), (0, None, None))(torch.stack([q, 2 * q]), k, v)
    leaf = q.clone().requires_grad_()
    return close(each[0], torch.autograd.grad(loss(leaf, k, v), leaf)[0], kernel)


def meta(kernel: Kernel) -> bool:
    params = options_of(kernel)["params"]
    params = None if params is None else params.to("meta")
    return bool(kernel.attend(*(x.to("meta") for x in rows()), params=params).is_meta)


def distributed(kernel: Kernel) -> bool | str:
    params = options_of(kernel)["params"]
    if params is None:
        return "no parameters"
    kernel.attend(*rows(), params=params).sum().backward()
    return all(parameter.grad is not None for parameter in params.parameters())


COLUMNS: dict[str, Callable[[Kernel], bool | str]] = {
    "`torch.compile`": compiled,
    "positions": lambda kernel: ", ".join(sorted(kernel.positions)),
    "new rows on cached keys": new_rows,
    "values of another width": wide_values,
    "documents": documents,
    "padding on the left": left_padding,
    "garbage in hidden places": garbage,
    "autocast": autocast,
    "`torch.func`": transforms,
    "meta device": meta,
    "every parameter in the graph": distributed,
}


def table() -> str:
    """Markdown: what every registered kernel of the package can do, by its defaults or its first example, and a line
    for each with the rest."""
    found = {}
    for kind, cls in kinds("kernel").items():
        if cls.__module__.startswith("sparsity_lab."):
            kernel = cls.examples()[0]
            assert isinstance(kernel, Kernel)
            cells = {name: column(kernel) for name, column in COLUMNS.items()}
            found[kind] = {
                name: cell if isinstance(cell, str) else "yes" if cell else "no" for name, cell in cells.items()
            }
    shared = [name for name in COLUMNS if {own[name] for own in found.values()} == {"yes"}]
    rest = [name for name in COLUMNS if name not in shared]
    lines = [["kernel", *rest], ["---"] * (1 + len(rest))]
    lines += [[f"`{kind}`", *(own[name] for name in rest)] for kind, own in found.items()]
    rows = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([textwrap.fill(f"Every kernel can do this: {', '.join(shared)}.", 119), "", *rows])


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")
