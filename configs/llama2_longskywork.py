"""LongSkywork: chunk-interleaved pretraining, then SFT (arXiv:2406.00605).

  python launch/tpu.py --config configs/llama2_longskywork.py:pretrain ...
  python launch/tpu.py --config configs/llama2_longskywork.py:sft ...

pretrain: a row takes pieces of several documents in turn, and sees them all.
sft: 200 iterations on long chats, synthetic tables among them.
Published are the methods, the 200 iterations and the window of 200K; sizes of
chunks are those of an implementation in OLMo-core, the rest is ours. For 64
chips of TPU v5p. Not run on a TPU.
"""

from configs import common

VARIANTS = dict(
  pretrain=dict(pack='interleave', documents=8, chunks=8),
  sft=dict(pack='next_fit'),
)


def get_config(stage='pretrain'):
  part = common.variant(VARIANTS, stage)
  config = common.published('llama2_13b', base=5_000_000.0)
  config.name = f'llama2_longskywork_{stage}'
  config.model.block = 2048
  config.mesh.update(data=4, seq=16)
  config.data.layout = 'balanced'
  config.data.mix = dict(all=dict(sources=('*',), **part))
  config.train.update(
    steps=200 if stage == 'sft' else 1000,  # abstract, for sft
    batch=16, seq_len=204_800, loss_chunk=2048, micro_batches=4,
  )  # fmt: skip
  config.optim.update(learning_rate=1e-5, schedule='cosine', warmup_steps=20)
  return config
