"""Tasks: what is sampled, and the declared truth about it."""

from typing import TYPE_CHECKING

from sparsity_lab.generators.addition import Addition as Addition
from sparsity_lab.generators.associative_recall import AssociativeRecall as AssociativeRecall
from sparsity_lab.generators.batch import IGNORE as IGNORE
from sparsity_lab.generators.batch import Batch as Batch
from sparsity_lab.generators.batch import Vocabulary as Vocabulary
from sparsity_lab.generators.bracketed_arithmetic import BracketedArithmetic as BracketedArithmetic
from sparsity_lab.generators.copying import Copy as Copy
from sparsity_lab.generators.copying import Reverse as Reverse
from sparsity_lab.generators.dataset import TaskDataset as TaskDataset
from sparsity_lab.generators.flip_flop import FlipFlop as FlipFlop
from sparsity_lab.generators.formal_languages import FormalLanguage as FormalLanguage
from sparsity_lab.generators.formal_languages import Membership as Membership
from sparsity_lab.generators.in_context_markov import InContextMarkov as InContextMarkov
from sparsity_lab.generators.induction_heads import InductionHeads as InductionHeads
from sparsity_lab.generators.languages import Dyck as Dyck
from sparsity_lab.generators.languages import Language as Language
from sparsity_lab.generators.languages import Runs as Runs
from sparsity_lab.generators.languages import Tomita as Tomita
from sparsity_lab.generators.locality import Anchored as Anchored
from sparsity_lab.generators.locality import Geometric as Geometric
from sparsity_lab.generators.locality import Law as Law
from sparsity_lab.generators.locality import PowerLaw as PowerLaw
from sparsity_lab.generators.locality import ProductLaw as ProductLaw
from sparsity_lab.generators.locality import Recent as Recent
from sparsity_lab.generators.locality import Uniform as Uniform
from sparsity_lab.generators.locality import Window as Window
from sparsity_lab.generators.mixture import Mixture as Mixture
from sparsity_lab.generators.modular_arithmetic import CompareNumbers as CompareNumbers
from sparsity_lab.generators.modular_arithmetic import ModularArithmetic as ModularArithmetic
from sparsity_lab.generators.multiple_addition import MultipleAddition as MultipleAddition
from sparsity_lab.generators.multiplication import Multiplication as Multiplication
from sparsity_lab.generators.needles import Needles as Needles
from sparsity_lab.generators.order_and_counting import CountSymbol as CountSymbol
from sparsity_lab.generators.order_and_counting import MajorityOfAll as MajorityOfAll
from sparsity_lab.generators.order_and_counting import Mode as Mode
from sparsity_lab.generators.order_and_counting import Sort as Sort
from sparsity_lab.generators.padded_mixture import PaddedMixture as PaddedMixture
from sparsity_lab.generators.parity_scratchpad import ParityAnswer as ParityAnswer
from sparsity_lab.generators.parity_scratchpad import ParityScratchpad as ParityScratchpad
from sparsity_lab.generators.passkey import Passkey as Passkey
from sparsity_lab.generators.planted import Planted as Planted
from sparsity_lab.generators.position_laws import ListedSets as ListedSets
from sparsity_lab.generators.position_laws import OneBlock as OneBlock
from sparsity_lab.generators.query_layout import background_tokens as background_tokens
from sparsity_lab.generators.query_layout import noisy_labels as noisy_labels
from sparsity_lab.generators.query_layout import noisy_log_posterior as noisy_log_posterior
from sparsity_lab.generators.query_layout import query_batch as query_batch
from sparsity_lab.generators.query_layout import recited_batch as recited_batch
from sparsity_lab.generators.response_layout import ResponseTask as ResponseTask
from sparsity_lab.generators.rules import First as First
from sparsity_lab.generators.rules import Lookup as Lookup
from sparsity_lab.generators.rules import Majority as Majority
from sparsity_lab.generators.rules import Parity as Parity
from sparsity_lab.generators.rules import Rule as Rule
from sparsity_lab.generators.rules import SumMod as SumMod
from sparsity_lab.generators.selective_copy import SelectiveCopy as SelectiveCopy
from sparsity_lab.generators.sparse_markov import SparseMarkov as SparseMarkov
from sparsity_lab.generators.sparse_parity import SparseParity as SparseParity
from sparsity_lab.generators.sparse_parity_scratchpad import SparseParityScratchpad as SparseParityScratchpad
from sparsity_lab.generators.state_tracking import Alternating as Alternating
from sparsity_lab.generators.state_tracking import Cyclic as Cyclic
from sparsity_lab.generators.state_tracking import Generated as Generated
from sparsity_lab.generators.state_tracking import Group as Group
from sparsity_lab.generators.state_tracking import RandomAutomaton as RandomAutomaton
from sparsity_lab.generators.state_tracking import Symmetric as Symmetric
from sparsity_lab.generators.state_tracking import WordProblem as WordProblem
from sparsity_lab.generators.stream import Stream as Stream
from sparsity_lab.generators.stream import bounded as bounded
from sparsity_lab.generators.stream import open_unit as open_unit
from sparsity_lab.generators.successive_law import SuccessivePower as SuccessivePower
from sparsity_lab.generators.suites import Suite as Suite
from sparsity_lab.generators.suites import SuiteTask as SuiteTask
from sparsity_lab.generators.suites import suite as suite
from sparsity_lab.generators.task import Draw as Draw
from sparsity_lab.generators.task import NotComputable as NotComputable
from sparsity_lab.generators.task import PositionLaw as PositionLaw
from sparsity_lab.generators.task import Step as Step
from sparsity_lab.generators.task import Task as Task
from sparsity_lab.generators.task import Truth as Truth
from sparsity_lab.generators.task import ranks_of_distinct as ranks_of_distinct
from sparsity_lab.generators.text_bytes import TextBytes as TextBytes
from sparsity_lab.generators.token_file import TokenFile as TokenFile
from sparsity_lab.generators.token_view import TokenView as TokenView
from sparsity_lab.generators.token_view import sequence_html as sequence_html
from sparsity_lab.generators.token_view import sequence_text as sequence_text
from sparsity_lab.generators.variable_assignment import VariableAssignment as VariableAssignment
from sparsity_lab.settings import lazy

if TYPE_CHECKING:
    from sparsity_lab.generators.certify import FALSE_ALARM_RATE as FALSE_ALARM_RATE
    from sparsity_lab.generators.certify import Certificate as Certificate
    from sparsity_lab.generators.certify import certify as certify

lazy.load_on_first_use(__name__)
