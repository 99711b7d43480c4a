"""Links to names by the module that defines them, which lead to where the reference documents them."""

from typing import Any

__all__ = ["resolve"]


def resolve(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Sphinx's hook for a name that was not found: ``sparsity_lab.generators.task.Batch`` is documented as
    ``sparsity_lab.generators.Batch``, and a plain ``Batch`` too."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    objects = env.get_domain("py").objects
    *_, last = target.split(".")
    found = [name for name in objects if name.startswith("sparsity_lab.") and name.rpartition(".")[2] == last]
    inside = target.split(".")[:2]
    near = [name for name in found if name.split(".")[:2] == inside] or found
    if not near or (target.startswith("sparsity_lab") is False and "." in target):
        return None
    node["reftarget"] = min(near, key=len)
    return env.get_domain("py").resolve_xref(
        env, node["refdoc"], app.builder, node["reftype"], node["reftarget"], node, content
    )
