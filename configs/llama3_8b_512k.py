"""ProLong stage 2: Llama 3 8B at 524,288 tokens (arXiv:2410.02660).

  python launch/tpu.py --config configs/llama3_8b_512k.py
      --config.weights=/data/run_64k --config.data.directory=/data/prolong

For 64 chips of TPU v5p. The weights are a run of stage 1 (64K tokens, base
8e6); the data is what launch/prepare.py made of the documents of the mix,
whose shares (section 2.2) are not set here. Not run on a TPU; compiled
for one ahead of time (docs/plan.md).
"""

from configs import common


def get_config():
  config = common.base('llama3_8b', base=128_000_000.0)  # table 9
  config.name = 'llama3_8b_512k'
  config.model.block = 2048
  config.mesh.update(data=4, seq=16)
  config.data.layout = 'balanced'
  config.train.update(
    steps=2500,  # 20B tokens, table 9
    batch=16,  # 8M tokens, table 9
    micro_batches=4,
    seq_len=524_288,
    loss_chunk=2048,  # LOGIT_BLOCK_SIZE of its scripts
  )
  config.optim.update(
    learning_rate=1e-5,  # table 9; train_512K.sh has 5e-6
    schedule='cosine',
    warmup_steps=250,  # 10 %, table 9
    min_ratio=0.1,
    weight_decay=0.1,
    b1=0.9,
    b2=0.95,
    clip=1.0,
  )
  config.checkpoint.every_steps = 25
  return config
