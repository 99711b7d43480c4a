"""What attention does, by layer, head and length: entropy, norms, planted mass, dilution, sinks, distractors."""

from sparsity_lab.analysis.attention.accounting import extrapolation_accounting as extrapolation_accounting
from sparsity_lab.analysis.attention.attention_map import AttentionMap as AttentionMap
from sparsity_lab.analysis.attention.attention_map import attention_map as attention_map
from sparsity_lab.analysis.attention.dilution import Dilution as Dilution
from sparsity_lab.analysis.attention.dilution import diluted_mass as diluted_mass
from sparsity_lab.analysis.attention.dilution import dilution as dilution
from sparsity_lab.analysis.attention.dilution import logit_gap as logit_gap
from sparsity_lab.analysis.attention.distractors import DistractorRobustness as DistractorRobustness
from sparsity_lab.analysis.attention.distractors import distractor_robustness as distractor_robustness
from sparsity_lab.analysis.attention.entropy import AttentionEntropy as AttentionEntropy
from sparsity_lab.analysis.attention.entropy import attention_entropy as attention_entropy
from sparsity_lab.analysis.attention.norm_sensitivity import NormSensitivity as NormSensitivity
from sparsity_lab.analysis.attention.norm_sensitivity import norm_sensitivity as norm_sensitivity
from sparsity_lab.analysis.attention.norm_sensitivity import softmax_entropy_slope as softmax_entropy_slope
from sparsity_lab.analysis.attention.planted_mass import PlantedMass as PlantedMass
from sparsity_lab.analysis.attention.planted_mass import planted_mass as planted_mass
from sparsity_lab.analysis.attention.sink import AttentionSink as AttentionSink
from sparsity_lab.analysis.attention.sink import attention_sink as attention_sink
