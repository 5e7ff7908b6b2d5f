"""How long it takes to make RULER's prompts.

  python tests/bench/prompts.py [--length 131072] [--samples 4] [--of 500]

Makes a few prompts of each of the 13 tasks with SmolLM2's tokenizer; prints the
seconds of the search for the size, those of a prompt, and what so many prompts
of each task would take, by the clock and on all cores. Haystack and words are
those of configs/smollm2_135m_abf_16k.py, fetched if they are not in the cache.
"""

import argparse
import itertools
import pathlib
import sys
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from configs import smollm2_135m_abf_16k
from longjax.data import downloads, prepare, tokenizer
from longjax.evals import haystack, prompts, ruler, word_lists


def measure(name: str, flags, tokens, source):
  """Prints a line; returns the seconds that all prompts would take."""
  task = ruler.TASKS[name]
  clock, cpu = [time.perf_counter()], time.process_time()
  made = task.stream(prompts.make_spec(tokens, task, source, flags.length, 42))
  least = len(next(made).prompt)  # the search, and the first
  clock.append(time.perf_counter())
  for sample in itertools.islice(made, flags.samples):
    least = min(least, len(sample.prompt))
  clock.append(time.perf_counter())
  each = (clock[2] - clock[1]) / flags.samples
  whole = clock[1] - clock[0] + each * (flags.of - 1)
  cpu = (time.process_time() - cpu) * whole / (clock[2] - clock[0])
  print(
    f'{name:16}{least + task.count:9,}{clock[1] - clock[0]:9.2f}s{each:9.3f}s'
    f'{whole:11.1f}s{cpu:9.1f}s',
    flush=True,
  )
  return whole, cpu


def main():
  parser = argparse.ArgumentParser(description='Seconds that prompts take.')
  parser.add_argument('--length', type=int, default=131_072)
  parser.add_argument('--samples', type=int, default=4)
  parser.add_argument('--of', type=int, default=500)
  parser.add_argument('--tasks', default=','.join(ruler.TASKS))
  flags = parser.parse_args()
  tokens = tokenizer.load(downloads.locate(smollm2_135m_abf_16k.WEIGHTS))
  store = prepare.held_out(smollm2_135m_abf_16k.get_config(), tokens)
  text = haystack.text(store, tokens, flags.length)
  source = prompts.Source(text, word_lists.load())
  print(
    f'{"":16}{"tokens":>9}{"search":>10}{"prompt":>10}{flags.of:>8} take    CPU'
  )
  names = flags.tasks.split(',')
  totals = np.sum([measure(n, flags, tokens, source) for n in names], axis=0)
  print(f'{"all":16}{totals[0]:49.1f}s{totals[1]:9.1f}s')


if __name__ == '__main__':
  main()
