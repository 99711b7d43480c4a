"""Checks of classes of your own: what the lab's own tests run over every registered class.

Each takes an instance and raises ``AssertionError`` at the first thing that does not hold; the message says what, and
what to do. They need no test framework; in pytest a test of a new class is one line:

    from sparsity_lab.generators import Geometric
    from sparsity_lab.testing import check_law

    check_law(Geometric(scale=3.0))
"""

from sparsity_lab.testing.kernel import check_kernel as check_kernel
from sparsity_lab.testing.law import check_law as check_law
from sparsity_lab.testing.position import check_position as check_position
from sparsity_lab.testing.rule import check_rule as check_rule
from sparsity_lab.testing.setting import check_setting as check_setting
from sparsity_lab.testing.task import check_task as check_task
