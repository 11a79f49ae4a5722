// Veins: stripes whose phase is moved by noise.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = placed(at, 0.8, 2.5);
    float wave = p.x * between(0, 0.8, 2.5) + between(1, 3.0, 7.0) * fbm(p + 0.1 * iTime);
    float vein = pow(abs(sin(wave)), between(2, 0.4, 1.6));
    vec3 stone = mix(ink(3), vec3(1), 0.5 * random(4)) * (0.7 + 0.5 * fbm(3.0 * p));
    colour = vec4(mix(0.5 * ink(5), stone, vein), 1);
}
