package main

import (
	"bytes"
	"fmt"
	"math"
)

// The plot has two panels side by side, over the number of nodes on a
// logarithmic axis: times on the left, counts on the right.
const (
	panelW, panelH = 360.0, 260.0
	marginL        = 56.0
	marginT        = 72.0
	gap            = 80.0
	legendH        = 86.0
)

type series struct {
	name, color string
	at          func(result) float64
}

// plot draws the results as SVG.
func (r *report) plot() []byte {
	var b bytes.Buffer
	w, h := 2*marginL+2*panelW+gap, marginT+panelH+50+legendH
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%.0f" height="%.0f" viewBox="0 0 %.0f %.0f" font-family="sans-serif" font-size="12">`+"\n", w, h, w, h)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="white"/>`+"\n")
	fmt.Fprintf(&b, `<text x="%.0f" y="24" font-size="16">How a network of p2pnode nodes scales</text>`+"\n", marginL)
	fmt.Fprintf(&b, `<text x="%.0f" y="42" fill="#555">latency %s, loss %v, %v crashes per minute, %d to %d connections, k %d, alpha %d, %s transport, scores %s</text>`+"\n",
		marginL, r.Settings.Latency, r.Settings.Loss, r.Settings.Churn, r.Settings.Low, r.Settings.High, r.Settings.Bucket, r.Settings.Alpha, r.Settings.Transport, r.Settings.Scores)
	r.panel(&b, marginL, "milliseconds of virtual time", []series{
		{"find a provider, median", "#1f77b4", func(x result) float64 { return x.FindTime.Median }},
		{"find a provider, 95%", "#aec7e8", func(x result) float64 { return x.FindTime.P95 }},
		{"message delivered, median", "#d62728", func(x result) float64 { return x.DeliverTime.Median }},
		{"message delivered, 99%", "#ff7f0e", func(x result) float64 { return x.DeliverTime.P99 }},
		{"message delivered, last", "#ff9896", func(x result) float64 { return x.DeliverTime.Max }},
	})
	r.panel(&b, marginL+panelW+gap, "count", []series{
		{"lookup hops", "#1f77b4", func(x result) float64 { return x.LookupHops }},
		{"peers queried in a lookup", "#aec7e8", func(x result) float64 { return x.LookupRequests }},
		{"gossip hops", "#d62728", func(x result) float64 { return x.GossipHops }},
		{"duplicates of a message per node", "#ff9896", func(x result) float64 { return x.Duplicates }},
	})
	b.WriteString("</svg>\n")
	return b.Bytes()
}

func (r *report) panel(b *bytes.Buffer, left float64, unit string, list []series) {
	least, most, top := math.Inf(1), 0.0, 0.0
	for _, x := range r.Results {
		least, most = min(least, float64(x.Nodes)), max(most, float64(x.Nodes))
		for _, s := range list {
			top = max(top, s.at(x))
		}
	}
	step := tick(top)
	top = math.Max(math.Ceil(top/step)*step, step)
	px := func(nodes int) float64 {
		if most == least {
			return left + panelW/2
		}
		return left + panelW*(math.Log(float64(nodes))-math.Log(least))/(math.Log(most)-math.Log(least))
	}
	py := func(v float64) float64 { return marginT + panelH*(1-v/top) }
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f" fill="#555">%s</text>`+"\n", left, marginT-6, unit)
	for v := 0.0; v <= top+step/2; v += step {
		fmt.Fprintf(b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="#ddd"/>`, left, py(v), left+panelW, py(v))
		fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="end">%g</text>`+"\n", left-6, py(v)+4, v)
	}
	for _, x := range r.Results {
		fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="middle">%d</text>`+"\n", px(x.Nodes), marginT+panelH+16, x.Nodes)
	}
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="middle" fill="#555">nodes</text>`+"\n", left+panelW/2, marginT+panelH+32)
	for i, s := range list {
		fmt.Fprintf(b, `<polyline fill="none" stroke="%s" stroke-width="2" points="`, s.color)
		for _, x := range r.Results {
			fmt.Fprintf(b, "%.1f,%.1f ", px(x.Nodes), py(s.at(x)))
		}
		b.WriteString("\"/>\n")
		for _, x := range r.Results {
			fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`, px(x.Nodes), py(s.at(x)), s.color)
		}
		y := marginT + panelH + 52 + float64(i)*16
		fmt.Fprintf(b, "\n"+`<rect x="%.1f" y="%.1f" width="18" height="4" fill="%s"/><text x="%.1f" y="%.1f">%s</text>`+"\n", left, y-5, s.color, left+26, y, s.name)
	}
}

// tick returns a round distance between the lines of an axis.
func tick(top float64) float64 {
	if top <= 0 {
		return 1
	}
	p := math.Pow(10, math.Floor(math.Log10(top)))
	switch {
	case top/p < 2:
		return p / 4
	case top/p < 5:
		return p / 2
	default:
		return p
	}
}
