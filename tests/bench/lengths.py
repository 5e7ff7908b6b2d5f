"""Real tokens a CPU second with train.lengths and without, and their losses.

  python tests/bench/lengths.py

A small model on one simulated device; rows of one document in sorted groups, as
LongAlign (2401.18058): four of five are short, the others up to a row long.
"""

import functools
import pathlib
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import jax
import numpy as np

from configs import common
from longjax import checks, llama
from longjax.data import pipeline, store
from longjax.parallel import sharding
from longjax.train import step as train_step

ROW, STEPS = 512, 6


def config_of(lengths):
  config = common.base('tiny')
  config.model.update(
    dtype='float32', layers=1, block=256, attention='blockwise'
  )
  config.mesh.update(data=1, seq=1)
  config.data.loss = 'documents'
  config.data.mix = dict(all=dict(sources=('*',), pack='sorted', group=2))
  config.train.update(
    batch=24, micro_batches=12, seq_len=ROW, loss_chunk=ROW, lengths=lengths
  )
  return config


def documents(directory):
  rng = np.random.default_rng(0)
  short = rng.lognormal(3.2, 0.6, 800).clip(8, 120)
  sizes = np.concatenate([short, rng.uniform(64, ROW, 200)]).astype(int)
  entries = (
    store.Entry(str(i), 's', rng.integers(1, 384, n), n)
    for i, n in enumerate(sizes.tolist())
  )
  store.write(directory, entries, vocab=384, tokenizer='t', spec=[])
  return store.open_store(directory)


def measure(config, data):
  """(real tokens, computed tokens, CPU seconds, losses) of some steps."""
  pipe, model = pipeline.Pipeline(data, config), checks.llama_config(config)
  mesh = sharding.make_mesh(1, 1)
  params = llama.init(model, jax.random.key(0))
  step = jax.jit(
    functools.partial(train_step.gradients, config, model=model, mesh=mesh)
  )
  run = lambda n: step(params, sharding.put(pipe.batch(n), mesh))
  jax.block_until_ready(run(0))
  began = time.process_time()
  losses = [
    float(jax.block_until_ready(run(n))[0]) for n in range(1, STEPS + 1)
  ]
  seconds = time.process_time() - began
  plans = [pipe.plan(n) for n in range(1, STEPS + 1)]
  real = sum(plan.tokens for plan in plans)
  return real, sum(int(plan.lengths.sum()) for plan in plans), seconds, losses


def main():
  sharding.start(1)
  with tempfile.TemporaryDirectory() as directory:
    data = documents(pathlib.Path(directory) / 'data')
    for lengths in ((), (32, 64, 128, 256)):
      real, computed, seconds, losses = measure(config_of(lengths), data)
      print(
        f'lengths {lengths}: {real / computed:.1%} of the tokens are real, '
        f'{real / seconds:,.0f} real tokens a CPU second, losses {losses}'
      )


if __name__ == '__main__':
  main()
