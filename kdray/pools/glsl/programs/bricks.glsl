// A wall of bricks.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = turn((random(0) < 0.5 ? 0.0 : TAU * random(1)) + 0.05 * iTime) * centred(at) * between(2, 1.2, 3.0);
    vec2 q = vec2(p.x * between(3, 0.4, 0.9), p.y) + 10.0 * random(4);
    q.x += between(5, 0.3, 0.5) * mod(floor(q.y), 2.0);
    vec2 cell = floor(q), f = q - cell, edge = min(f, 1.0 - f);
    float mortar = smoothstep(0.05, between(6, 0.1, 0.2), min(edge.x * 2.0, edge.y));
    vec3 brick = mix(ink(7), ink(8), dice(cell)) * (0.75 + 0.5 * fbm(4.0 * p));
    float bevel = 1.0 + 0.3 * (f.y - 0.5);
    colour = vec4(mix(mix(ink(9), vec3(0.6), 0.5), brick * bevel, mortar), 1);
}
