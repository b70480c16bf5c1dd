"""The style sheet of a run's report: phones, desktops and paper, light and dark; nothing is loaded from anywhere."""

STYLE = """
:root { color-scheme: light dark; --page: #fbfbf9; --card: #fff; --ink: #1c2026; --faint: #656d77; --rule: #dfe2e6;
  --shade: #f1f3f5; --right: #14804c; --wrong: #c4342f; --note: #fff4d6; --note-rule: #dba617;
  --c0: #2563c9; --c1: #d1472f; --c2: #7a3fb8; --c3: #138a72; --c4: #94700a; }
@media (prefers-color-scheme: dark) { :root { --page: #15181c; --card: #1d2126; --ink: #e8eaed; --faint: #9ba4af;
  --rule: #343a42; --shade: #252a31; --right: #3ecf8a; --wrong: #ff7a70; --note: #3a3118; --note-rule: #c99a1e;
  --c0: #74a9ff; --c1: #ff8d75; --c2: #c39bf5; --c3: #4fd1b5; --c4: #e2c25c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1000px; padding: 28px 20px 60px; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 8px; }
h2 { font-size: 1.2rem; margin: 44px 0 4px; }
p { margin: 6px 0; max-width: 46em; }
.faint { color: var(--faint); font-size: .9rem; }
.notice { background: var(--note); border-left: 4px solid var(--note-rule); padding: 10px 14px; margin: 14px 0; }
.cards, .charts { display: grid; gap: 14px; margin: 14px 0; }
.cards { grid-template-columns: repeat(auto-fill, minmax(min(100%, 235px), 1fr)); }
.charts { grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); }
.card, .chart, .retrieval { background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  break-inside: avoid; }
.card { padding: 12px 14px; }
.card h3 { font-size: .9rem; line-height: 1.35; font-weight: 600; margin: 0 0 6px; }
.card div { display: flex; align-items: baseline; gap: 0 7px; white-space: nowrap; font-variant-numeric: tabular-nums; }
.card .name { color: var(--faint); width: 3.6em; font-size: .9rem; }
.card .was { color: var(--faint); }
.card .now { font-size: 1.35rem; font-weight: 650; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: 4px 12px 4px 0; text-align: right; white-space: nowrap; }
th { font-weight: 500; color: var(--faint); }
th:first-child, td:first-child { text-align: left; }
tr.protocol td { padding-top: 12px; font-weight: 600; border-bottom: 1px solid var(--rule); white-space: normal; }
tr.protocol span { font-weight: 400; }
tr.after { font-weight: 600; }
.facts th { text-align: left; vertical-align: top; }
.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
figure { margin: 0; }
.chart { padding: 10px 12px 6px; display: flex; flex-direction: column; }
.chart figcaption { font-weight: 600; font-size: .9rem; line-height: 1.35; }
.chart figcaption span { font-weight: 400; color: var(--faint); }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: .8rem; color: var(--faint); margin: 2px 0 6px; }
.key { display: inline-flex; align-items: center; gap: 5px; }
.key b { color: var(--ink); font-weight: 600; font-variant-numeric: tabular-nums; }
.plot { width: 100%; height: auto; margin-top: auto; }
.plot text { font-size: 12px; fill: var(--ink); font-variant-numeric: tabular-nums; }
.plot text.note { fill: var(--faint); }
.middle { text-anchor: middle; }
.end { text-anchor: end; }
.grid { stroke: var(--rule); stroke-width: 1; }
.stage { fill: var(--shade); }
.stage.odd { fill: none; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.line.s1 { stroke-dasharray: 7 4; } .line.s2 { stroke-dasharray: 2 4; } .line.s3 { stroke-dasharray: 9 4 2 4; }
.line.s0 { stroke: var(--c0); } .line.s1 { stroke: var(--c1); } .line.s2 { stroke: var(--c2); }
.line.s3 { stroke: var(--c3); } .line.s4 { stroke: var(--c4); stroke-dasharray: 1 5; }
.band { opacity: .18; }
.band.s0, circle.s0, rect.s0 { fill: var(--c0); } .band.s1, circle.s1, rect.s1 { fill: var(--c1); }
.band.s2, circle.s2, rect.s2 { fill: var(--c2); } .band.s3, circle.s3, rect.s3 { fill: var(--c3); }
.band.s4, circle.s4, rect.s4 { fill: var(--c4); }
.reference { fill: none; stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 1 3; }
.retrieval { display: grid; grid-template-columns: 92px 1fr 1fr; gap: 6px 22px; padding: 12px 14px; margin: 10px 0; }
.strip { display: grid; grid-template-columns: repeat(6, 1fr); gap: 4px 6px; align-content: start; }
.strip .moment { grid-column: 1 / -1; }
.moment, .shot figcaption { font-size: .75rem; line-height: 1.3; color: var(--faint); }
.shot { position: relative; }
.shot img { display: block; width: 100%; border: 3px solid var(--faint); border-radius: 4px; }
.shot.right img { border-color: var(--right); }
.shot.wrong img { border-color: var(--wrong); border-style: dashed; }
.shot.right figcaption::before { content: "\\2713\\a0 "; color: var(--right); font-weight: 700; }
.shot.wrong figcaption::before { content: "\\2717\\a0 "; color: var(--wrong); font-weight: 700; }
details { margin: 10px 0; }
summary { cursor: pointer; }
pre { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 12px 14px; overflow-x: auto;
  font: .8rem/1.45 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
@media (max-width: 700px) {
  body { padding: 18px 14px 40px; }
  h1 { font-size: 1.4rem; }
  .retrieval { grid-template-columns: 62px 1fr; gap: 8px 12px; padding: 10px; }
  .retrieval .query { grid-row: 1 / 3; }
  .strip { gap: 3px 4px; }
  .strip figcaption span { display: none; }
  th, td { padding-right: 8px; }
  tr.protocol span { display: block; }
  .shot img { border-width: 2px; }
}
@media print {
  :root { --page: #fff; --card: #fff; --ink: #000; --faint: #444; --rule: #bbb; --shade: #eee; --right: #14804c;
    --wrong: #c4342f; --note: #fff; --c0: #2563c9; --c1: #d1472f; --c2: #7a3fb8; --c3: #138a72; --c4: #94700a; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  .charts { grid-template-columns: 1fr 1fr; }
  h2 { break-after: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
