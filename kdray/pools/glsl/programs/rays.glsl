// Beams from one point.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = centred(at) - vec2(between(0, -1.2, 1.2), between(1, -1.2, 1.2));
    float angle = atan(p.y, p.x) + 0.2 * iTime + between(2, -0.6, 0.6) * length(p);
    float beams = float(count(3, 5, 16)), wave = sin(beams * angle) + 0.4 * sin(2.0 * beams * angle + 1.0);
    float sharp = between(4, 0.1, 0.9);
    vec3 beam = mix(ink(5), ink(6), smoothstep(-sharp, sharp, wave));
    colour = vec4(mix(mix(vec3(1), ink(7), 0.5), beam, smoothstep(0.1, between(8, 0.4, 1.6), length(p))), 1);
}
