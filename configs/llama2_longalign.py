"""LongAlign: Llama 2 at 64K, pretraining and alignment (arXiv:2401.18058).

  python launch/tpu.py --config configs/llama2_longalign.py:7b_pretrain ...
  python launch/tpu.py --config configs/llama2_longalign.py:7b_packing
      --config.weights=runs/llama2_longalign_7b_pretrain ...

pretrain: base times 200, 10B tokens. packing: whole chats in rows of 64K with
each of them weighing the same (section 3.3). sorted: a chat a row, in
groups of 8 rows of like length, 12 groups a step, each computed at the shortest
of a few lengths that holds it. Its scripts decay to 0. Chats are prepared with
template='longalign'; longer ones than a row are left out, and no pack is halved
in the first steps. The batch and the rate of the pretraining are not in the
sources we have: 4M tokens, 2e-5. For 64 chips of TPU v5p. Not run on a TPU.
"""

from configs import common

STAGES = ('pretrain', 'packing', 'sorted')
VARIANTS = {f'{size}_{stage}': (size, stage) for size in ('7b', '13b')
            for stage in STAGES}  # fmt: skip
PACKS = dict(pretrain='concatenate', packing='next_fit', sorted='sorted')


def get_config(name='7b_packing'):
  size, stage = common.variant(VARIANTS, name)
  config = common.published(f'llama2_{size}', base=2_000_000.0)  # section 4.1
  config.name = f'llama2_longalign_{name}'
  config.model.block = 2048
  config.mesh.update(data=8, seq=8)
  config.data.mix = dict(all=dict(sources=('*',), pack=PACKS[stage]))
  config.train.update(seq_len=65_536, loss_chunk=2048)
  if stage == 'pretrain':
    # 10B tokens
    config.train.update(steps=2384, batch=64, micro_batches=2)
  else:
    config.data.loss = 'documents'  # section 3.3: weights K / (N_i M)
    # Section 4.1: 8 packs of 12 chats on average, or as many chats.
    batch = 8 if stage == 'packing' else 96
    config.train.update(steps=2000, batch=batch)
  if stage == 'sorted':
    # llama_sort.sh: 12 groups of 8, each padded to its longest chat.
    config.train.update(micro_batches=12, lengths=(4096, 8192, 16_384, 32_768))
  config.optim.update(
    learning_rate=2e-5, schedule='cosine', min_ratio=0.0, weight_decay=0.0,
    warmup_steps=round(0.03 * config.train.steps), b1=0.9, b2=0.95,
  )  # fmt: skip
  config.checkpoint.every_steps = 200
  return config
