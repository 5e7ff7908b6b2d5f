"""What a run tells: metrics.jsonl first, TensorBoard and a line from it."""

import json
import pathlib
import time

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore
from tensorboard.summary.writer.event_file_writer import EventFileWriter

# Where a metric stands in TensorBoard.
TAGS = dict(
  loss='train/loss',
  grad_norm='train/grad_norm',
  lr='train/lr',
  skipped='train/skipped',
  step_seconds='perf/step_seconds',
  tokens_per_second='perf/tokens_per_second',
  mfu='perf/mfu',
)


class Metrics:
  """The writer of one run directory."""

  def __init__(self, workdir, start: int, steps: int, log=print):
    """Lines of steps after `start` are dropped: they will be run again."""
    self.path = pathlib.Path(workdir) / 'metrics.jsonl'
    lines = [x for x in read(workdir) if x['step'] <= start]
    text = ''.join(json.dumps(x) + '\n' for x in lines)
    temporary = self.path.with_suffix('.tmp')
    temporary.write_text(text)
    temporary.replace(self.path)
    self.file = self.path.open('a')
    self.board = EventFileWriter(str(pathlib.Path(workdir) / 'tb'))
    self._event(start + 1, session_log=SessionLog(status=SessionLog.START))
    self.tokens = lines[-1]['tokens'] if lines else 0
    self.steps, self.log = steps, log
    self.seconds, self.done = 0.0, 0

  def step(self, step: int, tokens: int, seconds: float, values: dict):
    """One line a step; `values` are floats or None.

    Args:
      step: counted from 1.
      tokens: of this step.
      seconds: this step took.
      values: loss, grad_norm, lr, ...
    """
    self.tokens += tokens
    self.seconds, self.done = self.seconds + seconds, self.done + 1
    line = dict(
      step=step,
      loss=values['loss'],
      loss_hex=values['loss'].hex(),
      tokens=self.tokens,
      step_seconds=seconds,
      tokens_per_second=tokens / seconds,
    )
    line |= {k: v for k, v in values.items() if k not in line}
    self.file.write(json.dumps(line) + '\n')
    self.file.flush()
    self._event(
      step,
      summary=Summary(value=[
        Summary.Value(tag=tag, simple_value=line[name])
        for name, tag in TAGS.items() if line.get(name) is not None
      ]),
    )  # fmt: skip
    self.log(self.progress(line))

  def progress(self, line: dict) -> str:
    """`step 12/40  loss 3.4123  ...  eta 3m20s`."""
    each = self.seconds / self.done
    parts = [
      f'step {line["step"]}/{self.steps}',
      f'loss {line["loss"]:.4f}',
      f'grad {line["grad_norm"]:.2f}',
      f'lr {line["lr"]:.2e}',
      f'{line["step_seconds"]:.2f} s',
      f'{line["tokens_per_second"]:,.0f} tok/s',
    ]
    if line.get('mfu') is not None:
      parts.append(f'mfu {line["mfu"]:.1%}')
    if line.get('skipped'):
      parts.append('SKIPPED: loss or gradient not finite')
    parts.append(f'eta {duration(each * (self.steps - line["step"]))}')
    return '  '.join(parts)

  def close(self):
    self.file.close()
    self.board.close()

  def _event(self, step, **what):
    self.board.add_event(Event(wall_time=time.time(), step=step, **what))


class Silent:
  """The writer of a process that leaves writing to another."""

  def step(self, step, tokens, seconds, values):
    """Does nothing."""

  def close(self):
    """Does nothing."""


def read(workdir) -> list[dict]:
  """The lines of metrics.jsonl; a last line cut short by a crash is left."""
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  lines = []
  for text in path.read_text().splitlines() if path.exists() else ():
    try:
      lines.append(json.loads(text))
    except json.JSONDecodeError:
      break
  return lines


def duration(seconds: float) -> str:
  """'3m20s', '2h05m', '12s'."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f'{hours}h{minutes:02}m'
  return f'{minutes}m{seconds:02}s' if minutes else f'{seconds}s'
