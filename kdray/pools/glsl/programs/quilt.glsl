// Patches, each with a pattern of its own.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = turn(random(0) < 0.6 ? 0.0 : TAU * random(1)) * centred(at) * between(2, 0.8, 1.8)
        + 10.0 * random(3) + 0.2 * iTime;
    vec2 cell = floor(p), f = p - cell - 0.5, q = f * floor(3.0 + 4.0 * dice(cell + 11.0));
    int kind = int(5.0 * dice(cell + 70.0));
    float wave = kind == 0 ? sin(TAU * q.x) : kind == 1 ? sin(TAU * q.x) * sin(TAU * q.y)
        : kind == 2 ? 0.6 - length(fract(q) - 0.5) * 2.0 : kind == 3 ? sin(TAU * (q.x + q.y))
        : cos(TAU * length(q));
    vec3 own = mix(dice3(cell), dice3(cell + 33.0), smoothstep(-0.3, 0.3, wave));
    vec2 edge = 0.5 - abs(f);
    colour = vec4(mix(ink(4), own, smoothstep(0.02, 0.09, min(edge.x, edge.y))), 1);
}
