"""A picture of all bounds: how far each is from what it must be."""

import subprocess

from measure import Failed

SCRIPT = """
set terminal svg size 1100,{height} font "sans,14" background "#ffffff"
set output "{svg}"
set title "nbdelta: measured against what must hold ({scale} sizes, medians of {rounds} rounds)"
set xlabel "1 = just holds; further right is better (whiskers: least and most of a round)"
set logscale x 2
set xrange [{low}:{high}]
set yrange [{count}-0.5:-0.5]
set xtics ({tics}) nomirror
set ytics nomirror
set grid xtics linecolor "#dddddd"
set lmargin 46
set rmargin 34
set key off
set arrow from 1, graph 0 to 1, graph 1 nohead linewidth 2 linecolor "#000000"
set style fill solid 0.85 noborder
set errorbars 1
$data << EOD
{rows}
EOD
plot $data using 2:1:(1.0):2:($1-0.3):($1+0.3):5:yticlabels(6) with boxxyerror linecolor rgb variable, \\
     $data using 2:1:3:4 with xerrorbars pointtype 0 linewidth 2 linecolor "#333333", \\
     $data using ({high}):1:7 with labels left offset 1,0
"""


def draw(svg, results, scale, rounds):
    """`results`: (label, text, holds, median, least, most), the numbers relative to the bound."""
    rows = []
    for i, (label, text, holds, *numbers) in enumerate(results):
        color = 0x2A7F62 if holds else 0xC0392B
        rows.append(f'{i} {" ".join(f"{n:.4f}" for n in numbers)} {color} "{label}" "{text}"')
    if not rows:
        return
    low = min(0.5, *(row[4] for row in results)) / 1.2
    high = max(2.0, *(row[5] for row in results)) * 1.2
    tics = ", ".join(f'"{4.0 ** k:.3g}" {4.0 ** k}' for k in range(-5, 6))
    script = SCRIPT.format(svg=svg, scale=scale, rounds=rounds, count=len(rows), low=low, high=high,
                           tics=tics, height=140 + 36 * len(rows), rows="\n".join(rows))
    result = subprocess.run(["gnuplot"], input=script, capture_output=True, text=True, check=False)
    if result.returncode:
        raise Failed(f"gnuplot: {result.stderr}")
