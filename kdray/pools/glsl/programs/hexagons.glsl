// A honeycomb.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = placed(at, 1.5, 4.0), s = vec2(1.0, 1.7320508);
    vec2 a = mod(p, s) - 0.5 * s, b = mod(p + 0.5 * s, s) - 0.5 * s;
    vec2 f = dot(a, a) < dot(b, b) ? a : b, cell = floor((p - f) * 2.0 + 0.5);
    vec2 g = abs(f);
    float rim = 0.5 - max(g.x, dot(g, vec2(0.5, 0.8660254)));
    vec3 own = palette(dice(cell) * between(0, 0.3, 1.0) + 0.2 * sin(iTime + TAU * dice(cell + 5.0)));
    own *= mix(1.0, 0.5 + 1.2 * rim, random(1));
    colour = vec4(mix(ink(2), own, smoothstep(0.02, between(3, 0.06, 0.15), rim)), 1);
}
