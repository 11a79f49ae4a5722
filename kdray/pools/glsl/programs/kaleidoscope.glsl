// Noise in a wedge that is mirrored around the centre.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = centred(at);
    float wedge = TAU / float(2 * count(0, 2, 6)), angle = atan(p.y, p.x) + TAU * random(1);
    angle = abs(mod(angle, 2.0 * wedge) - wedge);
    vec2 q = length(p) * vec2(cos(angle), sin(angle)) * between(2, 1.5, 4.0);
    q += vec2(sin(0.4 * iTime), cos(0.3 * iTime)) + 3.0 * random(3);
    vec4 n = nearest(q, 0.8);
    colour = vec4(palette(n.x + fbm(q) * between(4, 0.5, 2.0)) * (0.5 + 0.8 * (n.y - n.x)), 1);
}
