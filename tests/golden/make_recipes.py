"""Makes recipes.json: what the code of the papers computes on small inputs.

  python tests/golden/make_recipes.py REPOSITORIES

REPOSITORIES holds clones of princeton-nlp/ProLong, dwzhu-pku/PoSE,
jquesnelle/yarn, THUDM/LongAlign and microsoft/LongRoPE, each in a directory of
its name after the slash. Their functions are read from there and run; nothing
of them is kept. Needs torch and transformers. It shares no code with longjax.
"""

import contextlib
import functools
import json
import math
import os
import pathlib
import random
import sys
import tempfile
import types

import numpy as np
import originals
import torch
import transformers

ROOT = pathlib.Path(sys.argv[1])
HERE = pathlib.Path(__file__).parent


def names_of(path, *names, **around):
  """Functions and classes of a file, run without the rest of it."""
  found = originals.names_of(
    path, *names, torch=torch, math=math, random=random,
    tqdm=lambda *_, **__: types.SimpleNamespace(
      update=lambda _: 0, set_postfix=lambda **_: 0),
    **around,
  )  # fmt: skip
  return list(vars(found).values())


def rates(steps, warmup, scheduler, peak, least=0.0, **more):
  """[step, rate] of a schedule of transformers, as its Trainer steps it."""
  optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=peak)
  made = transformers.get_scheduler(
    scheduler, optimizer, warmup, steps, scheduler_specific_kwargs=more
  )
  if least:  # as ProLong's trainer wraps it
    (bound,) = names_of('ProLong/training/trainer.py', 'min_lr_bound')
    made.lr_lambdas = [
      functools.partial(
        bound, wrapped_func=f, min_lr_ratio=least, warmup_steps=warmup
      )
      for f in made.lr_lambdas
    ]
  wanted = {0, 1, *range(warmup - 1, warmup + 2), steps // 2, steps * 9 // 10}
  wanted |= {steps - 2, steps - 1}
  return [[s, peak * made.lr_lambdas[0](s)] for s in sorted(wanted)]


def schedules():
  ratio = lambda share, steps: math.ceil(share * steps)  # as TrainingArguments
  return dict(
    llama2_yarn=rates(400, 20, 'linear', 2e-5),
    llama3_8b_64k=rates(5000, ratio(0.1, 5000), 'cosine', 1e-5, 0.1),
    llama3_8b_512k_sft=rates(250, ratio(0.05, 250), 'cosine', 2e-5, 0.1),
    llama2_longalign=rates(2000, ratio(0.03, 2000), 'cosine', 2e-5),
    wsd=rates(
      200,
      10,
      'warmup_stable_decay',
      2e-4,
      num_decay_steps=40,
      decay_type='linear',
      min_lr_ratio=0.0,
    ),
    llama2_longlora=rates(1000, 20, 'constant_with_warmup', 2e-5),
  )


def pose(row=16, target=64):
  """Its rows, each with the numbers drawn: [least, most, drawn]."""
  draws, rng = [], random.Random(0)

  def randint(low, high):
    draws.append([low, high, rng.randint(low, high)])
    return draws[-1][-1]

  (rows_of,) = names_of(
    'PoSE/src/train_pose.py', 'train_preprocess_function_pose',
  )  # fmt: skip
  rows_of.__globals__['random'] = types.SimpleNamespace(randint=randint)
  cases = []
  for length in (row, 17, 40, 80, 200):
    tokenizer = lambda text, max_length, **_: dict(
      input_ids=[list(range(text[0]))[:max_length]]
    )
    draws.clear()
    made = rows_of(dict(text=[length]), tokenizer, target, row)
    cases.append(
      dict(
        length=length,
        draws=list(draws),
        tokens=made['input_ids'][0],
        positions=made['position_ids'][0].tolist(),
      )
    )
  return dict(row=row, target=target, cases=cases)


def loss_of(ids, place):
  """Stands for a model: any number that depends on the token and the window."""
  return (7 * ids[place] + 3 * place + ids[0]) % 13 / 5


class Windows:
  """A model of `loss_of` in the interface of transformers."""

  def __call__(self, ids, labels):
    ids = ids[0].tolist()
    kept = [i for i in range(1, len(ids)) if labels[0, i] != -100]
    losses = [loss_of(ids, i) for i in kept]
    return types.SimpleNamespace(loss=torch.tensor(sum(losses) / len(losses)))


def perplexity():
  """exp of the mean loss by YaRN's and by PoSE's function."""
  found = dict(bos=1, documents=[], cases=[])
  random.seed(0)
  found['documents'] = [
    [random.randrange(2, 50) for _ in range(n)] for n in (30, 23, 8)
  ]
  encodings = dict(
    input_ids=found['documents'],
    attention_mask=[[1] * len(d) for d in found['documents']],
  )
  tokenizer = types.SimpleNamespace(bos_token='<s>', bos_token_id=1)
  for path, key in (
    ('yarn/eval/perplexity.py', 'sliding_window'),
    ('PoSE/src/eval_ppl.py', 'sliding_window_step'),
  ):
    (compute,) = names_of(path, 'compute_perplexity')
    for truncate, length, stride, start in (
      (False, 8, 3, True), (False, 12, 5, True), (True, 8, 3, True),
      (False, 8, 3, False),
    ):  # fmt: skip
      value = compute(
        encodings, Windows(), tokenizer, start, max_length=length,
        truncate=truncate, **{key: stride},
      )['mean_perplexity']  # fmt: skip
      found['cases'].append([path, truncate, length, stride, start, value])
  return found


def longrope(dim=16, first=4, length=32, original=16, base=10_000.0):
  """cos and sin with the first positions unscaled."""
  path = 'LongRoPE/rope/longrope.py'
  names = (
    'LongRoPEScaledRotaryEmbedding',
    'MixedLongRoPEScaledRotaryEmbedding',
  )
  _, mixed = names_of(path, *names, transformers=transformers)
  factors = [1.0, 1.1, 1.3, 1.5, 1.7, 1.9, 2.0, 2.0]
  frequency = base ** (-torch.arange(0, dim, 2).float() / dim)
  angle = torch.outer(torch.arange(length).float(), frequency)
  plain = torch.cat([angle, angle], -1)[None]
  rotate = mixed(
    dim, factors, first, (plain.cos(), plain.sin()), length / original,
    length, original, base,
  )  # fmt: skip
  x = torch.zeros(1, 1, length, dim)
  # Its `forward` passes one argument too few.
  scaled = rotate._longrope_forward(x, torch.arange(length)[None])
  cos, sin = rotate._add_original_embeddings(*scaled)
  half = lambda values: [
    [round(float(v), 6) for v in row[: dim // 2]] for row in values[0]
  ]
  config = transformers.LlamaConfig(
    hidden_size=dim, num_attention_heads=1, max_position_embeddings=length,
    rope_theta=base, rope_scaling=dict(
      rope_type='longrope', short_factor=factors[::-1], long_factor=factors,
      original_max_position_embeddings=original, factor=length / original)
  )  # fmt: skip
  inverse = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS['longrope']
  lengths = {n: inverse(config, 'cpu', n) for n in (original, original + 1)}
  return dict(
    transformers={
      n: [frequency.double().tolist(), scale]
      for n, (frequency, scale) in lengths.items()
    },
    dim=dim, first=first, original=original, base=base, factors=factors,
    factor=length / original, cos=half(cos), sin=half(sin),
  )  # fmt: skip


def yarn(dim=128, length=4096):
  """Radians per position and the factor on cos and sin, by scale."""
  path = 'yarn/scaled_rope/LlamaYaRNScaledRotaryEmbedding.py'
  *_, rotary = names_of(
    path, 'find_correction_dim', 'find_correction_range', 'linear_ramp_mask',
    'get_mscale', 'LlamaYaRNScaledRotaryEmbedding',
  )  # fmt: skip
  found = {}
  for scale in (16, 32):
    made = rotary(dim, 8, scale=scale, original_max_position_embeddings=length)
    found[scale] = [made.inv_freq.double().tolist(), made.mscale]
  return dict(dim=dim, length=length, by_scale=found)


def pose_rope(dim=128, length=2048, scale=8):
  """Of each interpolation: radians per position, factor on cos and sin."""
  names = ('LlamaRotaryEmbedding', 'LlamaLinearScalingRotaryEmbedding',
           'LlamaVanillaNTKScalingRotaryEmbedding',
           '_yarn_find_correction_dim', '_yarn_find_correction_range',
           '_yarn_linear_ramp_mask', '_yarn_get_mscale',
           'LlamaYaRNScaledRotaryEmbedding')  # fmt: skip
  _, linear, ntk, *_, yarn = names_of(
    'PoSE/src/my_modeling_llama.py', *names, np=np
  )
  of = lambda made, by=1: [
    (made.inv_freq.double() / by).tolist(), getattr(made, 'mscale', 1.0)
  ]  # fmt: skip
  return dict(
    linear=of(linear(dim, 8, scaling_factor=scale), scale),
    ntk=of(ntk(dim, 8, scaling_factor=scale)),
    yarn=of(yarn(
      dim, 8, scale=scale, original_max_position_embeddings=length,
    )),
  )  # fmt: skip


def longalign_packs(rows=24, row=65_536, unit=512):
  """Lengths of chats, in units, and where its packing ends each in its packs.

  And the sum of its loss weights in each pack: of chats that have targets.
  """
  rng = random.Random(0)
  lengths = [rng.randrange(2, 70) for _ in range(rows)]
  inputs = np.zeros((rows, row), np.int64)
  labels = np.full((rows, row), -100, np.int64)
  for i, n in enumerate(lengths):
    inputs[i, : n * unit] = 1
    labels[i, n * unit // 2 : n * unit] = 1
  inputs[3], labels[3] = 1, 1  # no place is free: left out
  lengths[3] = row // unit
  (sort,) = names_of(
    'LongAlign/sort_and_group.py', 'main', np=np, os=os, json=json
  )
  with tempfile.TemporaryDirectory() as directory:
    np.save(f'{directory}/inputs.npy', inputs)
    np.save(f'{directory}/labels.npy', labels)
    sort(types.SimpleNamespace(train_file=directory, group_size=8))
    text = pathlib.Path(directory, 'attention_masks_pack.json').read_text()
    weights = np.load(f'{directory}/weights_pack.npy').sum(1)
  # The last number is the end of the row.
  ends = [[n // unit for n in pack[:-1]] for pack in json.loads(text)]
  return dict(row=row // unit, lengths=lengths, ends=ends,
              weights=weights.round(3).tolist())  # fmt: skip


def longalign(rows=24, length=64):
  """Lengths of rows, and of the groups that its sorted batching makes."""
  random.seed(0)
  lengths = [random.randrange(2, length) for _ in range(rows)]
  rows = np.stack([np.arange(length) < n for n in lengths]).astype(np.int64)
  (sort,) = names_of(
    'LongAlign/sort_and_group.py', 'main', np=np, os=os, json=json
  )
  with tempfile.TemporaryDirectory() as directory:
    for name in ('inputs', 'labels'):
      np.save(f'{directory}/{name}.npy', rows)
    with contextlib.suppress(RuntimeError):  # its packing needs longer rows
      sort(types.SimpleNamespace(train_file=directory, group_size=8))
    made = np.load(f'{directory}/inputs_sort.npy').sum(1).reshape(-1, 8)
  return dict(lengths=lengths, groups=sorted(made.tolist()))


def main():
  found = dict(
    yarn=yarn(), pose_rope=pose_rope(), longalign=longalign(),
    longalign_packs=longalign_packs(),
    schedules=schedules(), pose=pose(), perplexity=perplexity(),
    longrope=longrope(),
  )  # fmt: skip
  (HERE / 'recipes.json').write_text(json.dumps(found) + '\n')


if __name__ == '__main__':
  main()
