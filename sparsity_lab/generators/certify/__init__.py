"""The certificate: everything that a task declares, tested on its sequences.

``certificate`` runs the checks and holds what they found. ``sequences`` draws what they look at, ``predictions`` is
what the exact predictor says of it, and ``draws`` the random choices behind it. ``checks``, ``levels``,
``dependence`` and ``streams`` are the checks, and ``findings`` the statistical tests that they end in.
"""

from sparsity_lab.generators.certify.certificate import CHECKS as CHECKS
from sparsity_lab.generators.certify.certificate import EFFORTS as EFFORTS
from sparsity_lab.generators.certify.certificate import FALSE_ALARM_RATE as FALSE_ALARM_RATE
from sparsity_lab.generators.certify.certificate import Certificate as Certificate
from sparsity_lab.generators.certify.certificate import certify as certify
