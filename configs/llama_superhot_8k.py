"""SuperHOT: LLaMA 13B with positions times 1/4, 2,048 -> 8,192.

  python launch/tpu.py --config configs/llama_superhot_8k.py
      --config.weights=/data/llama_13b --config.data.directory=/data/chats

kaiokendev's interpolation of June 2023, before Position Interpolation was
published: about 1,200 samples, 400 of them longer than 4,096 tokens. It was
LoRA of the projections of attention; its rank, alpha and rate are not in the
sources we have: here those of LongLoRA. Not run on a TPU.
"""

from configs import common


def get_config():
  config = common.base('llama1_13b', scaling='linear', factor=4.0)
  config.name = 'llama_superhot_8k'
  config.model.block = 2048
  config.lora.update(rank=8, alpha=16.0, whole=())
  config.mesh.update(data=16, seq=1)
  config.data.mix = dict(all=dict(sources=('*',), pack='next_fit'))
  config.train.update(steps=75, batch=16, seq_len=8192)  # an epoch of 1,200
  config.optim.update(
    learning_rate=2e-5, schedule='constant', warmup_steps=20, weight_decay=0.0
  )
  return config
