// A flower seen from above, with leaves.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = centred(at) - 0.4 * (vec2(random(0), random(1)) - 0.5);
    float angle = atan(p.y, p.x) + 0.3 * iTime + TAU * random(2), far = length(p), petals = float(count(3, 3, 9));
    vec3 sum = mix(ink(4), ink(5), noise(3.0 * p + iTime));
    for (int k = 0; k < 3; k++) {
        float reach = (0.9 - 0.25 * float(k)) * between(6, 0.6, 1.1);
        float edge = reach * (0.55 + 0.45 * pow(abs(cos(0.5 * petals * angle + float(k))), between(7, 0.4, 2.0)));
        vec3 own = mix(ink(10 + k), ink(20 + k), far / edge) * (0.6
            + 0.4 * abs(cos(0.5 * petals * angle + float(k))));
        sum = mix(sum, own, inside(far - edge, 0.07));
    }
    colour = vec4(mix(sum, ink(8), inside(far - between(9, 0.08, 0.25), 0.07)), 1);
}
