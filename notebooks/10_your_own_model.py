# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 10 Your own model
#
# This notebook takes one to two minutes on two idle cores.
#
# An existing model keeps its weights, and its attention is exchanged. Does this help, and at which length? The
# first cell trains a small `transformers` Llama on bytes of the standard library's source. You can use your own
# checkpoint instead: `AutoModelForCausalLM.from_pretrained(...)`.

# %%
import os
import sysconfig
import tempfile
import warnings
from pathlib import Path

import torch

warnings.filterwarnings("ignore", message="IProgress not found")  # said where ipywidgets is not installed
from transformers import LlamaConfig, LlamaForCausalLM

from sparsity_lab.analysis import attention_entropy, attention_sink
from sparsity_lab.interop import attach, detach, extend, from_transformers, record, swap_report
from sparsity_lab.kernels import LSSA, LSSAR, LogNSoftmax

SMOKE = bool(os.environ.get("SPARSITY_LAB_SMOKE"))  # the tests run every notebook in a smaller size
STEPS, DOCUMENTS = (2, 3) if SMOKE else (300, 60)
TRAINED = 64

files = [file.read_bytes() for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))]
documents = [torch.tensor(list(content)) for content in files if len(content) > 5000]
train_part, test_part = torch.cat(documents[::2]), documents[1::2]

torch.manual_seed(0)
sizes = {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2, "num_attention_heads": 4}
model = LlamaForCausalLM(LlamaConfig(vocab_size=256, max_position_embeddings=TRAINED, eos_token_id=None, **sizes))
optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
for _ in range(STEPS):
    starts = torch.randint(0, len(train_part) - TRAINED, (32,))
    batch = train_part[starts[:, None] + torch.arange(TRAINED)]
    loss = model(batch, labels=batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
model.eval()
print(f"loss of the last batch: {loss.item():.2f} nats a byte")

# %% [markdown]
# ## Attach, and detach
#
# `attach` puts a kernel in place of the attention of every layer. `detach` restores the model, bit for bit.
# Generation with a cache works as before.

# %%
prompt = test_part[0][None, :40]
before = model(prompt).logits
attach(model, LSSAR(p=3))
made = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24, do_sample=False)
print(repr(bytes(made[0, 40:].tolist())))
assert torch.equal(detach(model)(prompt).logits, before)

# %% [markdown]
# ## The verdict
#
# We compare the original model, three mechanisms in place of its attention, and its own attention re-weighted
# only at test time. The same tokens are predicted at every context length, and differences are paired by
# document.

# %%
lengths = (64, 128, 256)
found = swap_report(model, test_part, [LSSA(), LSSAR(p=3), LogNSoftmax()], lengths, documents=DOCUMENTS)
print(found.verdict)

# %%
found.frame().select("arm", "length", "loss", "difference", "difference_low", "difference_high")

# %%
found

# %% [markdown]
# `found.write("swap.html")` makes one page of it, and `sparsity-lab swap MODEL TEXT` does all of this.
#
# ## What attention does
#
# The lab's measures read records of a `transformers` model in the same way as a decoder of the lab.

# %%
batch = torch.stack([document[:128] for document in test_part[:4]])
records = {"as it is": record(model, batch), "LSSAR": record(attach(model, LSSAR(p=3)), batch)}
detach(model)
attention_entropy(records)

# %%
attention_sink(records).summary()

# %% [markdown]
# ## The same model as a decoder
#
# Llama is a `Decoder` with SwiGLU. The logits are equal up to rounding. Everything that the lab does with
# decoders works with it.

# %%
decoder = from_transformers(model)
print(f"largest difference of logits: {(decoder(batch).logits - model(batch).logits).abs().max():.0e}")
decoder.config

# %% [markdown]
# ## A longer context
#
# This follows LongLoRA: positions are interpolated, and low-rank maps are trained with whole embeddings and
# norms. Attention is sparse in training and dense at inference.

# %%
with tempfile.TemporaryDirectory() as folder:
    long = extend(
        model,
        4 * TRAINED,
        train_part,
        test_part,
        folder,
        steps=2 if SMOKE else 60,
        batch_size=4,
        learning_rate=3e-3,
        documents=DOCUMENTS,
    )
long.frame()

# %%
long

# %% [markdown]
# For your own model class, in runs and sweeps or in your own training loop, see "How to" in the documentation:
# existing models.
