"""SuperHOT: LLaMA with positions times 1/4, 2,048 -> 8,192, by LoRA.

  python launch/tpu.py --config configs/llama_superhot_8k.py:13b
      --config.weights=/data/llama_13b --config.data.directory=/data/chats

kaiokendev's interpolation of June 2023, before Position Interpolation was
published: 1,200 samples, some 400 of them longer than 2,048 tokens. 30b is the
model card of superhot-30b-8k; 13b has the rank of that adapter, and the rest of
the card (bias=all trains nothing: LLaMA has no biases). Not published: batch,
warm-up (here none) and what the rate does after (here it stays). The 30B's
frozen weights had 4 bits. Not run on a TPU.
"""

from configs import common

VARIANTS = {'13b': ('llama1_13b', 2), '30b': ('llama1_33b', 4)}


def get_config(size='13b'):
  model, rank = common.variant(VARIANTS, size)
  config = common.published(model, scaling='linear', factor=4.0)
  config.name = f'llama_superhot_8k_{size}'
  config.model.block = 2048
  config.lora.update(
    rank=rank, alpha=8.0, weights=('q', 'k', 'v', 'o'), whole=()
  )
  config.mesh.update(data=16, seq=1)
  config.data.mix = dict(all=dict(sources=('*',), pack='next_fit'))
  config.train.update(steps=225, batch=16, seq_len=8192)  # 3 epochs of 1,200
  config.optim.update(
    learning_rate=3e-4, schedule='constant', weight_decay=0.1,
    b1=0.9, b2=0.99, eps=1e-5,
  )  # fmt: skip
  return config
