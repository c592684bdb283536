"""The HTML report's style sheet."""

from __future__ import annotations

__all__ = ["STYLE"]

STYLE = """
:root { color-scheme: light dark; --back: #fbfbfa; --card: #fff; --ink: #1c1f23; --soft: #5d6670; --line: #e2e4e7;
  --bar: #3a76c4; --compute: #3a76c4; --queue: #e0a125; --outside: #a9b1ba; --mark: #b3261e;
  --s0: #0a6ab5; --s1: #c4510a; --s2: #14805e; --s3: #9b3f87; --s4: #8a6d00; --s5: #54606c; }
@media (prefers-color-scheme: dark) { :root { --back: #15181c; --card: #1c2025; --ink: #e8eaed; --soft: #9aa4af;
  --line: #2f353c; --bar: #6ba3e8; --compute: #6ba3e8; --queue: #e9b949; --outside: #6b7580; --mark: #ff8a80;
  --s0: #6cb4f5; --s1: #ff9a5c; --s2: #5fcda7; --s3: #dc8fcb; --s4: #dcc04d; --s5: #aab4be; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 20px 48px; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 8px; }
h2 { font-size: 1.15rem; margin: 0 0 12px; }
p, li { color: var(--soft); font-size: .9rem; margin: 8px 0; max-width: 80ch; overflow-wrap: anywhere; }
ul { padding-left: 1.2em; margin: 0; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px; margin: 18px 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px; padding: 0;
  background: none; border: 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; }
.tile b { font-size: 1.9rem; font-variant-numeric: tabular-nums; letter-spacing: -.02em; }
.tile span { display: block; color: var(--soft); font-size: .85rem; }
.tile.wide { grid-column: 1 / -1; }
.alarm { color: var(--mark); font-weight: 600; }
figure { margin: 0; }
figcaption, caption { font-size: .9rem; font-weight: 600; text-align: left; }
svg { display: block; width: 100%; height: auto; }
svg text { font: 13px system-ui, "DejaVu Sans", sans-serif; fill: var(--soft); }
svg .axis { font-weight: 600; }
svg .marked { fill: var(--mark); font-size: 12px; font-weight: 600; }
svg .grid { stroke: var(--line); } svg .base { stroke: var(--soft); } svg .mark { stroke: var(--mark); }
svg .bar { fill: var(--bar); }
svg polyline { fill: none; stroke-width: 2; } svg .dashed { stroke-dasharray: 5 4; }
svg circle { stroke-width: 2; } svg .hollow { fill: var(--card); }
.s0 { stroke: var(--s0); } .s1 { stroke: var(--s1); } .s2 { stroke: var(--s2); } .s3 { stroke: var(--s3); }
.s4 { stroke: var(--s4); } .s5 { stroke: var(--s5); }
.dot.s0 { fill: var(--s0); } .dot.s1 { fill: var(--s1); } .dot.s2 { fill: var(--s2); } .dot.s3 { fill: var(--s3); }
.dot.s4 { fill: var(--s4); } .dot.s5 { fill: var(--s5); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; font-weight: 400; color: var(--soft); margin: 6px 0; }
.key { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 6px; vertical-align: -1px; }
.key.s0 { background: var(--s0); } .key.s1 { background: var(--s1); } .key.s2 { background: var(--s2); }
.key.s3 { background: var(--s3); } .key.s4 { background: var(--s4); } .key.s5 { background: var(--s5); }
.key.dot { border-radius: 50%; background: var(--soft); }
.key.hollow { border-radius: 50%; border: 2px solid var(--soft); }
.compute { background: var(--compute); } .queue { background: var(--queue); } .outside { background: var(--outside); }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)); gap: 18px 24px; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(460px, 100%), 1fr)); gap: 26px 36px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .87rem; }
.bars { width: 100%; align-self: start; }
.bars caption { padding-bottom: 6px; }
.bars thead { color: var(--soft); font-size: .8rem; }
.bars th { text-align: left; font-weight: 400; padding: 3px 10px 3px 0; overflow-wrap: anywhere; max-width: 14em; }
.bars td { text-align: right; padding: 3px 0; }
.bars .drawn { width: 58%; padding-left: 10px; }
.drawn div { display: flex; height: 14px; } .drawn i { display: block; min-width: 0; }
.scroll { overflow-x: auto; }
.figures th { color: var(--soft); font-weight: 600; text-align: right; vertical-align: bottom; padding: 4px 8px;
  border-bottom: 1px solid var(--soft); }
.figures td { text-align: right; padding: 4px 8px; border-bottom: 1px solid var(--line); white-space: nowrap; }
details { margin-top: 16px; } summary { cursor: pointer; color: var(--soft); font-size: .9rem; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
@media (max-width: 560px) { main { padding: 16px 10px 32px; } section { padding: 14px 12px; }
  section > figure > svg text { font-size: 23px; } }
"""
