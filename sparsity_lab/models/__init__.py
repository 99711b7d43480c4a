"""Decoders, what they make of positions, and adapters to fine-tune them; sparse functional attention."""

from sparsity_lab.models.adapters import Adapter as Adapter
from sparsity_lab.models.adapters import LoRA as LoRA
from sparsity_lab.models.adapters import lora_embed_norm as lora_embed_norm
from sparsity_lab.models.adapters import merged as merged
from sparsity_lab.models.adapters import trainable_parameters as trainable_parameters
from sparsity_lab.models.config import ModelConfig as ModelConfig
from sparsity_lab.models.couplings import Coupling as Coupling
from sparsity_lab.models.couplings import Ignored as Ignored
from sparsity_lab.models.couplings import Oracle as Oracle
from sparsity_lab.models.couplings import Predicted as Predicted
from sparsity_lab.models.couplings import Shuffled as Shuffled
from sparsity_lab.models.decoder import Decoder as Decoder
from sparsity_lab.models.decoder import DecoderModel as DecoderModel
from sparsity_lab.models.functional_attention import FunctionalAttention as FunctionalAttention
from sparsity_lab.models.index_sampling import IndexSampling as IndexSampling
from sparsity_lab.models.index_sampling import Plain as Plain
from sparsity_lab.models.index_sampling import PoSE as PoSE
from sparsity_lab.models.index_sampling import Randomized as Randomized
from sparsity_lab.models.index_sampling import RandomOffset as RandomOffset
from sparsity_lab.models.positions import ALiBi as ALiBi
from sparsity_lab.models.positions import Learned as Learned
from sparsity_lab.models.positions import NoPE as NoPE
from sparsity_lab.models.positions import PositionScheme as PositionScheme
from sparsity_lab.models.positions import RoPE as RoPE
from sparsity_lab.models.positions import Sinusoidal as Sinusoidal
from sparsity_lab.models.record import LayerRecord as LayerRecord
