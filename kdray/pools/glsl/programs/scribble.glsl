// One thick line that wanders, as written by hand.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = centred(at), before = vec2(0);
    vec2 pace = vec2(count(1, 1, 3), count(3, 1, 3)), phase = TAU * vec2(random(2), random(4)),
        wiggle = vec2(random(5), random(6));
    float far = 9.0, hue = 0.0, stride = between(0, 0.12, 0.3);
    for (int k = 0; k <= 18; k++) {
        float s = float(k) * stride + iTime * 0.3;
        vec2 here = 0.7 * sin(s * pace + phase) + 0.25 * sin(5.0 * s * wiggle + phase.yx);
        float d = k > 0 ? segment(p, before, here) : 9.0;
        hue = d < far ? float(k) / 18.0 : hue;
        far = min(far, d);
        before = here;
    }
    vec3 paper = mix(ink(8), ink(9), 0.5 + 0.4 * dot(p, vec2(cos(TAU * random(10)), sin(TAU * random(10)))));
    colour = vec4(mix(paper, mix(ink(11), palette(hue), random(12)),
        inside(far - between(7, 0.05, 0.14), 0.08)), 1);
}
