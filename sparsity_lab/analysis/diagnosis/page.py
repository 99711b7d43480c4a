"""A diagnosis as one HTML file."""

from pathlib import Path

from sparsity_lab.analysis.diagnosis.diagnose import Diagnosis
from sparsity_lab.analysis.measurement import Measurement
from sparsity_lab.analysis.output import write_whole
from sparsity_lab.analysis.report.page import Section, page
from sparsity_lab.analysis.style import figure_svg
from sparsity_lab.settings.markup import Markup, details, element, join, table


def write_diagnosis(found: Diagnosis, path: Path | str, *, files: tuple[str, ...] = ()) -> Path:
    """Write the verdict with its horizon, both figures and all numbers as a page that needs nothing but itself.

    >>> data = TokenData.of([np.arange(400) % 7 + one for one in range(6)])
    >>> small = Decoder(num_layers=1, num_heads=2, d_model=16)
    >>> write_diagnosis(diagnose(data, length=10, longest=2, model=small, steps=5), "diagnosis.html").name
    'diagnosis.html'

    Args:
        files: how the data were read, for people.

    Raises:
        SettingError: a file that cannot be written.
    """
    answers = [
        (one.question, {True: "yes", False: "no", None: "not decided"}[one.answer], one.found)
        for one in found.answers
    ]
    verdict = join([
        element("p", element("b", found.verdict)),
        table(["question", "answer", "found"], answers),
        element("ul", *(element("li", line) for line in found.horizon())),
        element("p", "; ".join(files)),
    ])  # fmt: skip
    rows = {title.strip(): frame for title, frame in found.tables().items()}
    tables = join(details(title, table(frame.columns, frame.iter_rows())) for title, frame in rows.items())
    sections = [
        Section("verdict", "Verdict and horizon", verdict),
        Section("look", "Without a model", join([_figure(found.look), element(
            "p", f"From {found.look.tokens:,} tokens; the longest sequence has {found.look.longest:,}.")])),
        Section("kept", "What is kept on long windows", _figure(found)),
        Section("numbers", "Numbers", tables),
    ]  # fmt: skip
    return write_whole(Path(path), page("Diagnosis", sections).encode())


def _figure(measurement: Measurement) -> Markup:
    figure = Markup(figure_svg(measurement.figure(), measurement.finding))
    return element("div", figure, class_="picture")
