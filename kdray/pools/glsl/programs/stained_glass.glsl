// Panes of colour between lead.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = placed(at, 1.2, 3.0);
    vec4 n = nearest(p, 0.85);
    float lead = smoothstep(0.05, between(0, 0.12, 0.25), n.y - n.x);
    vec3 pane = mix(dice3(n.zw), palette(dice(n.zw + 9.0)), 0.5) * (0.7 + 0.5 * noise(3.0 * p));
    colour = vec4(mix(0.3 * ink(1), pane, lead), 1);
}
