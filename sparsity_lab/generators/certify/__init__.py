"""The certificate: everything that a task declares, tested on its sequences.

``certificate`` runs the checks and holds their findings. ``sequences`` draws the sequences, ``predictions`` has the
exact predictor's output for them, and ``draws`` has the random choices behind them. The checks are in ``checks``,
``levels``, ``likelihood``, ``dependence``, ``learned`` and ``streams``. ``findings`` has the statistical tests.
"""

from sparsity_lab.generators.certify.certificate import CHECKS as CHECKS
from sparsity_lab.generators.certify.certificate import EFFORTS as EFFORTS
from sparsity_lab.generators.certify.certificate import FALSE_ALARM_RATE as FALSE_ALARM_RATE
from sparsity_lab.generators.certify.certificate import Certificate as Certificate
from sparsity_lab.generators.certify.certificate import certify as certify
