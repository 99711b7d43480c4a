"""``context_extension``: trained short, fine-tuned long with sparse attention and light adapters, tested dense.

LongLoRA (arXiv 2309.12307) at a scale of two cores: what shifted groups, low-rank maps, whole embeddings and norms,
and interpolated positions are each worth. A run of an arm has one learning rate; which rate stands for the arm is
chosen on sequences that no claim looks at.
"""

from sparsity_lab.recipes.context_extension.arms import arms
from sparsity_lab.recipes.context_extension.claims import CLAIMS
from sparsity_lab.recipes.context_extension.measure import measure
from sparsity_lab.recipes.context_extension.page import figure, tables
from sparsity_lab.studies import Study, recipe

__all__ = ["context_extension"]

NOTES = """
- **Text** is the source of Python's standard library, byte by byte: of its files one in ten is for evaluation, by the
  hash of its content. `run.environment` in the JSON beside this page names the Python whose library it was.
- **Rates.** Every method is run at three learning rates. The rate that stands for a method is the one with the
  smallest mean loss, tested dense at the extended context, on validation sequences of a stream of their own.
- **Overlap.** A text has one part for evaluation, so windows of validation and test can overlap. With the library of
  Python 3.11.7 they share 431 of 16 448 tested bytes at 256 bytes, in 3 of 64 windows, and 103 of 32 832 bytes at
  512, in one. Chosen on the tested sequences themselves, every rate would be the same.
- **Calibration**, with seed 100, which is not among the results: a parent on text of 800 steps at rate 3e-3 has 1.55
  nats a byte at 64 bytes; on SparseMarkov 400 steps at 2e-3 come to the floor; on the passkey 600 steps at 2e-3
  retrieve 98 % of the digits at 64 tokens. Steps were then cut to what the small size can carry. The rates of
  fine-tuning were not calibrated.
- **Three seeds.** A seed has its own parent, and arms are compared seed by seed. With three of them Student's
  interval is 4.3 standard errors wide to each side, so a claim is decided only if the seeds agree closely. Numbers
  in the tables are means over seeds; after ± is the mean of the runs' standard errors over the tested sequences,
  which are the same for all runs.
- **Scale.** Fine-tuning is 150 steps of 1024 tokens: a tenth of what a parent saw on text, a sixth on the passkey, a
  fifth on SparseMarkov. Nothing here says what a thousand steps would do. Small and full size have the depth at which
  a token's information reaches the whole context: 2 N / G - 1 layers, 7 with groups of a quarter. The smoke size has
  one layer and does not.
- **What was seen.** The middle rate is the best for every method on text, so the grid holds the optimum; on the
  passkey it is the lowest for all, and on SparseMarkov the highest for dense fine-tuning, so that another rate may do
  better there. Fine-tuning this short costs at the short context in all arms, dense ones too. Without fine-tuning,
  interpolation harms text and SparseMarkov, which live on the distances of a few tokens, and helps the passkey, which
  lives on matching. On SparseMarkov no method comes back from it: the claim about the floor compares arms that are
  all nearer to guessing than to the floor. On the passkey sparse fine-tuning loses what interpolation alone had.
- **The published setting** of two claims, the shift and the dense test, is low-rank maps with embedding and norms;
  the claims here are decided with all weights trained. The table of sparse and dense tests has both.
- **Tasks.** Retrieval is tested on models trained to retrieve, not on the text models: the vocabularies differ. The
  lags of this SparseMarkov are 3 and 9, so its floor tells whether what was learned at short range survives, not
  whether long range is learned.
- **Clocks.** Times of steps are medians over logged steps on a machine that ran up to four such runs on two cores:
  by processor time, all 162 runs take about 55 minutes, half of that on two idle cores. `sparsity-lab bench
  fine_tune` compares steps in turn, and at a length where attention dominates. The two claims about the time of
  attention were added after the runs, their rules before it was measured. Peak memory is counted, of one step with
  the first seed.
- **Full size.** 270 runs with five seeds, 8 layers of width 256, contexts 256, 1024 and 2048: estimated at half a day
  on one GPU. It has not been run.
"""

context_extension = recipe(
    Study(
        name="context_extension",
        title="Context extension: fine-tuned sparse, tested dense",
        question="A decoder trained with dense attention at a short context is fine-tuned at one four times as long, "
        "and at one eight times as long, with positions interpolated: dense or with shifted sparse attention, all "
        "weights or low-rank maps with and without whole embeddings and norms. All are tested with dense attention. "
        "Real text, a synthetic task whose floor is known, and the retrieval of a passkey.",
        arms=arms,
        claims=CLAIMS,
        figure=figure,
        columns=(),
        notes=NOTES,
        measure=measure,
        tables=tables,
    )
)
