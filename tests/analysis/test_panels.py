import polars as pl
from analysis.synthetic import frame_of

from sparsity_lab.analysis.panels import panels_of


def config(rule, marking, position, k, locality, **more):
    task = {"task": f"Planted(k={k})", "task.rule": rule, "task.marking": marking, "task.k": k}
    return {**task, "model.position": position, "task.locality": locality, **more}


def test_arms_are_grouped_by_rule_marking_and_position():
    panels = panels_of(
        frame_of(
            ("a0", config("Parity()", "token", "RoPE()", 1, "Uniform()"), [1] * 4),
            ("b0", config("Parity()", "token", "RoPE()", 2, "Uniform()"), [1] * 4),
            ("c0", config("Majority()", "position", "RoPE()", 3, "Recent(width=4)"), [1] * 4),
            ("d0", config("Majority()", "position", "RoPE()", 3, "Anchored()"), [1] * 4),
            ("e0", config("Majority()", "position", "NoPE()", 3, "Anchored()"), [1] * 4),
        )
    )
    assert [(panel.title, panel.position, panel.by) for panel in panels] == [
        ("Parity, token marking, Uniform locality, RoPE", "RoPE", ("task.k",)),
        ("Majority, position marking, k=3, RoPE", "RoPE", ("task.locality",)),
        ("Majority, position marking, Anchored locality, NoPE", "NoPE", ("task.k",)),
    ]
    assert [panel.rows["run"].n_unique() for panel in panels] == [2, 2, 1]


def test_what_would_be_pooled_becomes_an_arm_and_what_goes_with_one_is_named():
    def run(k, kernel, steps):
        more = {"model.kernel": kernel, "training.steps": steps}
        return config("Parity()", "token", "RoPE()", k, "Uniform()", **more)

    (panel,) = panels_of(
        frame_of(
            ("a0", run(1, "Softmax()", 100), [1] * 4),
            ("b0", run(1, "LSSA()", 100), [1] * 4),
            ("c0", run(2, "Softmax()", 200), [1] * 4),
            ("d0", run(2, "LSSA()", 200), [1] * 4),
        )
    )
    assert panel.by == ("task.k", "model.kernel")
    assert panel.also == ("training.steps",)


def test_conditions_without_an_optimum_have_a_panel_of_their_own():
    known = frame_of(("a0", config("Parity()", "token", "RoPE()", 1, "Uniform()"), [1] * 4))
    unknown = frame_of(("a0", config("Parity()", "token", "RoPE()", 1, "Uniform()"), [1] * 4), judged=False)
    panels = panels_of(pl.concat([known, unknown.with_columns(condition=pl.lit("text"))]))
    assert [panel.measure for panel in panels] == ["normalized_accuracy", "accuracy"]
    assert panels[1].title == f"{panels[0].title} (no optimum declared)"


def test_what_follows_from_another_setting_is_named_once():
    def run(coupling, coupled, steps):
        more = {"task.coupled": coupled, "model.coupling": coupling, "training.steps": steps}
        return config("Majority()", "position", "NoPE()", 3, "Anchored()", **more)

    (panel,) = panels_of(
        frame_of(
            ("a0", run(None, False, 900), [1] * 4),
            ("b0", run("Oracle(max_id=4)", True, 300), [1] * 4),
            ("c0", run("Shuffled(max_id=4)", True, 300), [1] * 4),
        )
    )
    assert panel.title == "Majority, position marking, k=3, Anchored locality, NoPE"
    assert panel.by == ("model.coupling",)
    assert panel.also == ("task.coupled", "training.steps")


def test_one_arm_without_k_goes_by_its_task():
    (panel,) = panels_of(
        frame_of(("a0", {"task": "TextBytes()", "task.k": None, "model.position": "RoPE()"}, [1] * 4))
    )
    assert panel.by == ("task",)


def test_of_two_that_say_the_same_the_setting_stays():
    def run(coupling, coupled):
        return config("Majority()", "position", "RoPE()", 3, "Anchored()") | {
            "task.coupled": coupled,
            "model.coupling": coupling,
        }

    (panel,) = panels_of(
        frame_of(("a0", run(None, False), [1] * 4), ("b0", run("Oracle(max_id=4)", True), [1] * 4)),
    )
    assert panel.by == ("model.coupling",)
