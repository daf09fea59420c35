"""How report.html looks: light or dark as the reader's system is, one column on a narrow screen."""

STYLE = """
:root{color-scheme:light dark;--ink:#1a202c;--dim:#5a6678;--rule:#dfe5ec;--page:#f6f8fa;--card:#fff;
--learnt:#2563b8;--held:#b4530f;--plain:#0f766e;--level:#5a6678;--problem:#b42318}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaf0;--dim:#9aa7b8;--rule:#2b3544;--page:#10151c;--card:#181f29;
--learnt:#6ea8fe;--held:#f2a15f;--plain:#4fd1c5;--level:#9aa7b8;--problem:#ff8a80}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:64rem;margin:0 auto;padding:1.5rem 1rem 3rem}
h1{margin:0;font-size:1.7rem;overflow-wrap:anywhere}
h2{margin:2.2rem 0 .7rem;font-size:1.15rem}
h3{margin:0 0 .6rem;font-size:1rem;white-space:pre-wrap;overflow-wrap:anywhere}
small,.dim,.state,dt{color:var(--dim)}
.state{margin:.2rem 0 1rem}
.problem{color:var(--problem);font-weight:600}
.problem::before{content:"failed: "}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.7rem;margin:0}
.tiles div,figure,article,.scroll,details{background:var(--card);border:1px solid var(--rule);border-radius:8px}
.tiles div{padding:.6rem .8rem}
dt{font-size:.85rem}
dd{margin:0}
.tiles dd{font-size:.85rem;color:var(--dim)}
.tiles b{font-size:1.35rem;color:var(--ink);font-variant-numeric:tabular-nums}
.tiles span{display:inline-block}
.panels{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:.9rem}
figure{margin:0;padding:.7rem .8rem .4rem}
.whole{grid-column:1/-1}
.if-narrow{display:none}
figure svg:not(.key){display:block;width:100%;height:auto}
.legend{margin:.1rem 0 .3rem;font-size:.85rem;color:var(--dim);display:flex;flex-wrap:wrap;gap:0 1.1rem;
font-variant-numeric:tabular-nums}
.key{width:26px;height:12px;margin-right:.4rem}
figure text{font:12px system-ui,sans-serif;fill:var(--dim);font-variant-numeric:tabular-nums}
.grid{stroke:var(--rule);fill:none}
.axis{stroke:var(--dim);fill:none}
.line{fill:none;stroke-width:2;stroke-linejoin:round;stroke:var(--plain)}
.line.learnt{stroke:var(--learnt)}
.line.held{stroke:var(--held);stroke-dasharray:6 4}
.level{fill:none;stroke:var(--level);stroke-width:1.5;stroke-dasharray:2 4}
.dot{fill:var(--plain)}
.dot.learnt{fill:var(--learnt)}
.dot.held{fill:var(--held)}
.spot{fill:transparent;pointer-events:all}
.spot:hover{fill:currentColor;fill-opacity:.35}
article{padding:.8rem;margin-bottom:.7rem}
.replies{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,15rem),1fr));gap:.8rem;margin:0}
.replies dd{white-space:pre-wrap;overflow-wrap:anywhere;font-size:.95rem}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem;width:100%}
th,td{text-align:left;vertical-align:top;padding:.4rem .8rem;border-bottom:1px solid var(--rule)}
tbody tr:last-child>*{border-bottom:0}
thead th{color:var(--dim);font-weight:500}
tbody th{font-weight:600}
td{font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
details{overflow:hidden}
summary{padding:.6rem .8rem;cursor:pointer}
details .scroll,details pre{border:0;border-top:1px solid var(--rule);border-radius:0}
pre{margin:0;padding:.8rem;overflow:auto;font-size:.85rem}
ul{padding-left:1.2rem}
@media(max-width:640px){.panels{grid-template-columns:minmax(0,1fr)}.if-wide{display:none}.if-narrow{display:block}
th,td{padding:.4rem .5rem}figure text{font-size:15px}}
@media print{body{background:none}figure,article{break-inside:avoid}}
""".strip().replace("\n", "")
