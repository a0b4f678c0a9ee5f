"""The page's style: light and dark by the reader's setting, one column on a phone, plain on paper."""

# Eight hues that stay apart for colour-blind readers, each with a lighter twin on dark ground; contrast 3:1 or more.
STYLESHEET = """
:root{--paper:#fbfaf7;--card:#ffffff;--ink:#1d1c1a;--muted:#66625b;--line:#ddd8ce;--grid:#e6e2d9;--noise:#f1e3df;
--accent:#0b5a8f;--threshold:#1d1c1a;--better:#00658f;--worse:#a34a00;
--d0:#0072b2;--d1:#c44e00;--d2:#00805c;--d3:#a0478a;--d4:#8f6400;--d5:#1b7f95;--d6:#4a4fb8;--d7:#5f6670;
--s0:#0b5a8f;--s1:#c44e00;--s2:#00805c;--s3:#a0478a;--s4:#8f6400;--s5:#5f6670;color-scheme:light}
@media screen and (prefers-color-scheme:dark){:root{--paper:#161719;--card:#1e2023;--ink:#eceae6;--muted:#a5a19a;--line:#363a3f;
--grid:#2d3035;--noise:#38292a;--accent:#74bdf0;--threshold:#f5f3ef;--better:#74c3ea;--worse:#f3a066;
--d0:#56b4e9;--d1:#f08a4b;--d2:#2fc193;--d3:#dd8fc6;--d4:#e6b032;--d5:#6cc9dc;--d6:#9da2f5;--d7:#a9b1bc;
--s0:#74bdf0;--s1:#f08a4b;--s2:#2fc193;--s3:#dd8fc6;--s4:#e6b032;--s5:#a9b1bc;color-scheme:dark}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
main{max-width:68rem;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1,h2{font-family:Charter,"Iowan Old Style","Source Serif 4",Georgia,"Noto Serif",serif;font-weight:600;line-height:1.25;text-wrap:balance}
h1{font-size:clamp(1.5rem,1.05rem + 2vw,2.3rem);margin:.4rem 0 1rem;text-wrap:pretty}
h1 strong{color:var(--accent);font-weight:700}
h2{font-size:1.55rem;margin:3.5rem 0 .4rem;padding-top:1rem;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:1.8rem 0 .5rem}
p{margin:.5rem 0;max-width:46rem}
.eyebrow,.note,figcaption,caption{color:var(--muted);font-size:.875rem}
.eyebrow{letter-spacing:.02em;margin:0}
.note{max-width:46rem}
a{color:var(--accent)}
nav{display:flex;flex-wrap:wrap;gap:.35rem 1.1rem;font-size:.875rem;margin:1.4rem 0 0}
code{font:.86em/1.4 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;overflow-wrap:anywhere}
abbr{text-decoration:underline dotted var(--muted);text-underline-offset:.2em;cursor:help}
bdi.long{overflow-wrap:anywhere}
figure{margin:1.2rem 0}
figcaption{margin-top:.7rem;max-width:46rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr));gap:.75rem;margin:1.5rem 0 0}
.tile,.stage,.sequence,details.box{background:var(--card);border:1px solid var(--line);border-radius:.6rem}
.tile{padding:.8rem 1rem}
.tile b{display:block;font-size:1.5rem;line-height:1.2;font-variant-numeric:tabular-nums;font-weight:600}
.tile span{color:var(--muted);font-size:.82rem;line-height:1.35;display:block;margin-top:.2rem}
.pipeline{display:flex;flex-wrap:wrap;gap:.6rem 1.2rem;list-style:none;padding:0;margin:1rem 0}
.stage{flex:1 1 7.4rem;padding:.6rem .7rem;position:relative;font-size:.85rem;line-height:1.4}
.stage+.stage::before{content:"→";position:absolute;left:-1.1rem;top:calc(50% - .8em);color:var(--muted);font-size:1rem}
.stage b{display:block;font-size:.95rem;overflow-wrap:anywhere}
.stage .time{display:block;font-size:1.15rem;font-variant-numeric:tabular-nums}
.stage small{color:var(--muted);display:block;font-size:.8rem}
.stage.reused{border-style:dashed;background:none}
.badge{display:inline-block;font-size:.72rem;line-height:1.5;border:1px solid currentColor;border-radius:1rem;padding:0 .5em;color:var(--muted);white-space:nowrap}
.badge.kept{color:var(--better)}
.row{display:grid;grid-template:"name plot value"/minmax(6rem,12rem) minmax(0,1fr) 8.5rem;column-gap:.9rem;align-items:center;font-size:.9rem}
.row>.name{grid-area:name;display:flex;align-items:baseline;line-height:1.25;padding:.15rem 0}
.row>.value{grid-area:value;font-variant-numeric:tabular-nums;font-size:.82rem;line-height:1.3;color:var(--muted)}
.row>.value b{color:var(--ink);font-weight:600}
.row>.value span{display:block}
.row>.plot,.row>.above,.row>.axis,.row>.bar{grid-area:plot}
.swatch{display:inline-block;width:.7em;height:.7em;border-radius:.18em;background:var(--c);margin-right:.5em;flex:none}
.plot{position:relative}
.plot>svg.chart{display:block;width:100%;height:3.2rem}
.plot.tall>svg.chart{height:clamp(15rem,38vw,22rem)}
svg.chart{stroke-linejoin:round;overflow:hidden}
svg.chart path{vector-effect:non-scaling-stroke}
.axis{position:relative;height:1.5rem;font-size:.78rem;color:var(--muted);font-variant-numeric:tabular-nums}
.axis>span,.above>span{position:absolute;transform:translateX(-50%);white-space:nowrap}
.axis>span{top:.15rem}
.above{position:relative;height:1.5rem;font-size:.8rem;font-weight:600}
.above>span.left{transform:translateX(-100%)}.above>span.right{transform:none}
.with-axis{display:grid;grid-template-columns:2.9rem minmax(0,1fr)}
.y-axis{position:relative;font-size:.78rem;color:var(--muted);font-variant-numeric:tabular-nums}
.y-axis>span{position:absolute;right:.5rem;transform:translateY(50%)}
.legend{display:flex;flex-wrap:wrap;gap:.3rem 1.3rem;font-size:.88rem;margin:.2rem 0 .6rem;padding:0;list-style:none}
.legend i{display:inline-block;width:1.9em;border-top:3px solid var(--c);vertical-align:middle;margin-right:.5em}
.legend i.dashed{border-top-style:dashed}
.dot{position:absolute;width:.5rem;height:.5rem;margin:0 0 -.25rem -.25rem;border-radius:50%;background:var(--c);outline:1px solid var(--paper);-webkit-print-color-adjust:exact;print-color-adjust:exact}
.dot.square{border-radius:0}
.dot.ring{background:var(--paper);border:2px solid var(--c)}
.legend .dot{position:static;display:inline-block;margin:0 .5em 0 0;width:.65rem;height:.65rem}
sup,sub{line-height:0}
.facts{padding-left:1.2rem;max-width:46rem}
.facts li{margin:.35rem 0}
td small{color:var(--muted)}
.bar{position:relative;height:1.15rem;background:var(--grid);border-radius:.2rem;overflow:hidden;margin:.22rem 0}
.bar>i{display:block;height:100%;background:var(--c);-webkit-print-color-adjust:exact;print-color-adjust:exact}
.bar>s{position:absolute;top:0;bottom:0;border-left:2px dashed var(--threshold)}
.scroll{overflow-x:auto;margin:1rem 0;-webkit-overflow-scrolling:touch}
table{border-collapse:collapse;font-size:.84rem;min-width:100%}
caption{text-align:left;padding-bottom:.5rem}
th,td{padding:.36rem .42rem;border-bottom:1px solid var(--line);vertical-align:top}
thead th{vertical-align:bottom;font-weight:600;line-height:1.3;border-bottom:2px solid var(--line)}
th.text,td.text{text-align:left}
th.number,td.number{text-align:right}
td.number{font-variant-numeric:tabular-nums;white-space:nowrap}
th:first-child{position:sticky;left:0;background:var(--paper)}
details.box th:first-child{background:var(--card)}
tbody th{font-weight:500;min-width:7rem;max-width:18rem}
tbody th:has(.swatch){padding-left:1.2em}
tbody th>.swatch{position:absolute;left:0;top:.85em}
tr>*:first-child{padding-left:0}
tr>*:last-child{padding-right:0}
tr.total>*{border-top:2px solid var(--line)}
.best{font-weight:700}
.better{color:var(--better)}.worse{color:var(--worse)}
.columns{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:1.5rem}
.sequence{padding:.75rem .9rem;margin:0 0 .8rem}
.sequence header{display:flex;flex-wrap:wrap;gap:.1rem .9rem;align-items:baseline;font-size:.84rem}
.sequence header b{font-size:1.05rem;font-variant-numeric:tabular-nums}
.sequence header .meta{color:var(--muted)}
.sequence pre{margin:.5rem 0 0}
pre{font:.8rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;white-space:pre-wrap;overflow-wrap:anywhere;margin:0;tab-size:4}
summary{cursor:pointer;color:var(--accent);font-size:.82rem;margin-top:.4rem}
details[open]>summary{margin-bottom:.3rem}
.sequence:has(details[open])>pre{display:none}
.sequence details pre{max-height:32rem;overflow-y:auto}
details.box{padding:.6rem 1rem;margin:1rem 0}
details.box summary{margin:0;font-size:.95rem}
dl.words{display:grid;grid-template-columns:minmax(8rem,12rem) 1fr;gap:.45rem 1.2rem;font-size:.9rem}
dl.words dt{font-weight:600}
dl.words dd{margin:0}
footer{margin-top:3rem;color:var(--muted);font-size:.82rem}
.visually-hidden{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
@media (max-width:46rem){
main{padding:1.4rem 1rem 3rem}
.columns{grid-template-columns:minmax(0,1fr)}
.row{grid-template:"name value" "plot plot"/minmax(0,1fr) auto}
.row>.value{text-align:right}
.row>.value span{display:inline}
.row>.value span+span::before{content:" · "}
.row>.plot,.row>.bar{margin-bottom:.6rem}
.stage{flex-basis:100%;display:grid;grid-template-columns:minmax(0,1fr) auto;column-gap:1rem;align-items:baseline}
.stage>small:last-child{grid-column:2;text-align:right}
.stage>.time{text-align:right}
.pipeline{gap:1.3rem}
.stage+.stage::before{content:"↓";left:calc(50% - .5em);top:-1.4rem}
dl.words{grid-template-columns:minmax(0,1fr);gap:.1rem}
dl.words dd{margin-bottom:.6rem}
}
@media print{
body{font-size:10.5pt}
main{max-width:none;padding:0}
nav{display:none}
.scroll{overflow:visible}
.sequence,.tile,.stage,tr,figure{break-inside:avoid}
h2,h3{break-after:avoid}
svg.chart,.swatch,.legend i{-webkit-print-color-adjust:exact;print-color-adjust:exact}
table{font-size:8pt}
}
""".strip()
