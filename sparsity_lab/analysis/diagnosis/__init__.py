"""Diagnosis of a user's own data: k and locality, short training and long testing, a verdict."""

from sparsity_lab.analysis.diagnosis.diagnose import Diagnosis as Diagnosis
from sparsity_lab.analysis.diagnosis.diagnose import diagnose as diagnose
from sparsity_lab.analysis.diagnosis.diagnose import write_diagnosis as write_diagnosis
from sparsity_lab.analysis.diagnosis.look import Beyond as Beyond
from sparsity_lab.analysis.diagnosis.look import DataLook as DataLook
from sparsity_lab.analysis.diagnosis.look import look_at as look_at
from sparsity_lab.analysis.diagnosis.token_data import TokenData as TokenData
from sparsity_lab.analysis.diagnosis.token_data import read_tokens as read_tokens
from sparsity_lab.analysis.diagnosis.verdict import Thresholds as Thresholds
