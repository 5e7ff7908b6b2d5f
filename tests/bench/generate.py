"""Generation with SmolLM2-135M, beside transformers in the same process.

  python tests/bench/generate.py [--prompt 256] [--tokens 64] [--gguf FILE]
  python tests/bench/generate.py --after 256,4096,16384
  python tests/bench/generate.py --prefill 65536 [--run]
  python tests/bench/generate.py --shared 8192,32768

The first prints decoded tokens a second of CPU and of wall time, the least of
three runs of each, in turns; both use float32 and all cores. The second prints
what a token costs after so many, whose keys are made up. The third
compiles reading a prompt of so many tokens on eight simulated devices and
prints what a device holds; with --run it also reads one, and prints after each
chunk the time and the largest memory of the process, in which all eight
devices live. The last asks a small random model one question about a text of so
many tokens, then ten, and prints what these cost.
"""

import argparse
import dataclasses
import os
import pathlib
import resource
import sys
import time

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from configs import smollm2_135m_abf_16k
from longjax import llama, weights
from longjax.attention import Ids
from longjax.data import downloads, tokenizer
from longjax.inference import generate, kv_cache, language_model, prefix
from longjax.parallel import sharding

RUNS = 3
BURST = 8  # tokens of a run of --after
CHUNK = 2048


def clocks():
  return np.array([time.process_time(), time.perf_counter()])


def decoding(path, prompt: int, tokens: int):
  """Prints tokens a second of both."""
  import torch
  import transformers

  files = sorted((pathlib.Path(__file__).parents[2] / 'longjax').rglob('*.py'))
  text = '\n'.join(f.read_text() for f in files)
  ids = tokenizer.load(path).encode(text)[:prompt]
  params, config = weights.load(path)
  params = generate.place_params(params, config)
  directory, name = os.path.split(path)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    directory, gguf_file=name, dtype=torch.float32
  )

  def ours_run(count):
    return generate.generate(params, config, [ids], count)[0]

  def theirs_run(count):
    with torch.no_grad():
      out = theirs.generate(
        torch.tensor(ids[None]), max_new_tokens=count, min_new_tokens=count,
        do_sample=False, eos_token_id=None,
      )  # fmt: skip
    return out[0, len(ids) :].numpy()

  spent: dict = dict(longjax=[], transformers=[])
  answers = {}
  for _ in range(RUNS + 1):  # the first compiles
    for name, run in (('longjax', ours_run), ('transformers', theirs_run)):
      times = []
      for count in (1, 1 + tokens):
        began = clocks()
        answers[name] = run(count)
        times.append(clocks() - began)
      spent[name].append(times)
  same = np.array_equal(answers['longjax'], answers['transformers'])
  # What a token costs without the prompt: a long run less a short one.
  least = {k: np.min(v[1:], axis=0) for k, v in spent.items()}
  rates = {k: tokens / (long - short) for k, (short, long) in least.items()}
  print(f'{tokens} tokens after a prompt of {prompt}, the same: {same}')
  for name, (cpu, wall) in rates.items():
    print(f'{name:14}{cpu:8.1f} tokens / CPU s {wall:8.1f} tokens / s')
  ratio = rates['longjax'] / rates['transformers']
  print(f'{"ratio":14}{ratio[0]:8.2f}{ratio[1]:24.2f}')


def later(path, lengths):
  """Prints what a token costs after each number of others."""
  params, config = weights.load(path)
  params = generate.place_params(params, config)
  model = kv_cache.ModelOnMesh(config)
  draw = generate.SamplingArrays(
    *np.float32([0, 1]), np.int32(0), np.zeros(1, np.int32)
  )
  for length in lengths:
    state = prefix.empty(
      model, 1, prefix.Sizes(length, BURST * (RUNS + 1), CHUNK)
    )
    (cache,) = state.cache
    index = np.arange(cache.ids.index.shape[2], dtype=np.int32)
    ids = Ids((index < length).astype(np.int32)[None, None], index[None, None])
    state = state._replace(cache=(cache._replace(ids=ids),))
    group = generate.PromptGroup(
      np.array([length], np.int32), np.full(4, -1, np.int32), draw
    )
    spent = []
    for _ in range(RUNS + 1):  # the first compiles
      began = clocks()
      state, tokens = generate.decode(
        params, state, group, np.zeros(1, bool), np.int32(BURST), model
      )
      jax.block_until_ready(tokens)
      spent.append(clocks() - began)
    cpu, wall = 1000 * np.min(spent[1:], axis=0) / BURST
    print(f'{length:9,} {cpu:6.0f} CPU ms a token {wall:6.0f} ms', flush=True)


def reading(path, tokens: int, run: bool):
  """Prints what reading a long prompt holds on each of eight devices."""
  params, config = weights.load(path)
  config = dataclasses.replace(config, block=512)
  mesh = sharding.make_mesh(1, len(jax.devices()))
  params = generate.place_params(params, config, mesh)
  model = kv_cache.ModelOnMesh(config, mesh)
  state = prefix.empty(model, 1, prefix.Sizes(tokens, 0, CHUNK))
  rng = np.random.default_rng(0)
  prompt = rng.integers(0, config.vocab, (1, tokens)).astype(np.int32)
  lengths = np.array([tokens], np.int32)
  step = lambda state, start: generate.prefill.lower(
    params, state, prompt[:, start : start + CHUNK], lengths, np.int32(start),
    model,
  )  # fmt: skip
  compiled = step(state, 0).compile()
  memory = compiled.memory_analysis()
  cache = state.cache[0].k.addressable_shards[0].data.nbytes * 2
  print(
    f'{tokens:,} tokens on {len(jax.devices())} devices, chunks of {CHUNK:,}: '
    f'cache {cache / 2**20:.0f} MiB, arguments '
    f'{memory.argument_size_in_bytes / 2**20:.0f} MiB, temporaries '
    f'{memory.temp_size_in_bytes / 2**20:.0f} MiB a device'
  )
  if not run:
    return
  began = clocks()
  for start in range(0, tokens, CHUNK):
    chunk = prompt[:, start : start + CHUNK]
    state = compiled(params, state, chunk, lengths, np.int32(start))
    jax.block_until_ready(state)
    cpu, wall = clocks() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
      f'{start + chunk.shape[1]:,} read in {cpu:.0f} CPU s, {wall:.0f} s; the '
      f'process held at most {peak:.2f} GiB', flush=True,
    )  # fmt: skip


def questions(lengths, count=10, tokens=50, answer=16):
  """Prints what one question and `count` cost about one text, of `tokens`."""
  config = llama.Llama(512, 4, 128, 384, 8, 4, 16, dtype='float32')
  params = llama.init(config, jax.random.key(0))
  rng = np.random.default_rng(0)
  for length in lengths:
    spent = []
    for asked in (count, 1, count):  # the first compiles
      text, lm = (
        rng.integers(0, 512, length),
        language_model.with_cache(
          params, config, options=generate.Options(rows=1)
        ),
      )
      began = clocks()
      for _ in range(asked):
        lm.generate([np.append(text, rng.integers(0, 512, tokens))], answer)
      spent.append(clocks() - began)
    one, many = spent[1:]
    print(
      f'{length:9,} tokens: 1 question {one[0]:.2f} CPU s, {count} questions '
      f'{many[0]:.2f}, {many[0] / one[0]:.2f} times ({many[1] / one[1]:.2f} by '
      'the clock)', flush=True,
    )  # fmt: skip


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--gguf', default='')
  parser.add_argument('--prompt', type=int, default=256)
  parser.add_argument('--tokens', type=int, default=64)
  parser.add_argument('--after', default='')
  parser.add_argument('--prefill', type=int, default=0)
  parser.add_argument('--run', action='store_true')
  parser.add_argument('--shared', default='')
  flags = parser.parse_args()
  jax.config.update('jax_platforms', 'cpu')
  if flags.shared:
    return questions([int(n) for n in flags.shared.split(',')])
  path = str(downloads.locate(flags.gguf or smollm2_135m_abf_16k.WEIGHTS))
  jax.config.update('jax_num_cpu_devices', 8 if flags.prefill else 1)
  if flags.prefill:
    reading(path, flags.prefill, flags.run)
  elif flags.after:
    later(path, [int(n) for n in flags.after.split(',')])
  else:
    decoding(path, flags.prompt, flags.tokens)


if __name__ == '__main__':
  main()
