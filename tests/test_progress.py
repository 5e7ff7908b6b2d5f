"""Durations and progress lines, by hand."""

import time

from longjax import progress


def test_durations_and_sizes_by_hand():
  durations = {12.4: '12s', 200: '3m20s', 7500: '2h05m'}
  assert {s: progress.duration(s) for s in durations} == durations
  sizes = {1.234e10: '12.3 GB', 5e6: '5.00 MB'}
  assert {n: progress.size(n) for n in sizes} == sizes


def test_lines_have_amount_rate_and_time_left():
  lines = []
  bar = progress.Progress('importing', 8e9, lines.append, every_seconds=0)
  bar.add(2e9)
  assert lines[0].startswith('importing: 2.0 GB of 8.0 GB, ')
  assert bar.line(10) == 'importing: 2.0 GB of 8.0 GB, 0.2 GB/s, 30s left'
  tokens = lambda n: f'{n:,.0f} tokens'
  unknown = progress.Progress('packing', 0, lines.append, tokens)
  unknown.add(3000)
  assert unknown.line(2) == 'packing: 3,000 tokens, 1,500 tokens/s'
  assert len(lines) == 1  # the other is not due yet


def test_a_line_comes_where_work_is_silent():
  lines = []
  with progress.with_heartbeat(lines.append, 0.1) as log:
    log('compiling')
    time.sleep(0.5)  # lines after 0.1, 0.2 and 0.4 s
    assert lines[0] == 'compiling' and len(lines) >= 3
    log('done')
  time.sleep(0.3)
  assert lines[-1] == 'done'
